"""The shipped policy: speculative against sequential samples of one observation, in law."""

import pytest
import torch
from closed_form import ALPHA
from scipy import stats

from diffpolicy_spec import SamplerConfig, load_policy


@pytest.mark.slow
@pytest.mark.parametrize("window", [16, 100])
def test_speculative_chunks_have_the_law_of_sequential_ones(window):
    """KS on the coordinates' projections, norms and products; 1500 samples a side see a distance of 0.10."""
    policy, n = load_policy("lift"), 1500
    condition = 0.3 * torch.randn(1, policy.config.condition_dim, generator=torch.Generator().manual_seed(0))
    shape = (n, policy.config.horizon, policy.config.action_dim)
    plan = torch.zeros(1, *shape[1:]).expand(shape)

    def draw(config, seed):
        g = torch.Generator().manual_seed(seed)
        sampler = policy.bind(config)
        noise = torch.randn(shape, generator=g)
        return sampler(policy.denoiser(condition.expand(n, -1)), noise, generator=g, warm_start=plan)

    ours = draw(SamplerConfig(options={"window": window}), 1)
    theirs = draw(SamplerConfig("ddpm"), 2)
    assert float(ours.stats.calls.double().mean()) < 20
    a, b = ours.x0.flatten(1), theirs.x0.flatten(1)
    centre, directions = b.mean(0), torch.linalg.svd(b - b.mean(0), full_matrices=False).Vh[:6]
    views = [(a - centre) @ d for d in directions], [(b - centre) @ d for d in directions]
    for x, mine in ((a, views[0]), (b, views[1])):
        mine += [(x - centre).norm(dim=1), mine[0] * mine[1], x.max(dim=1).values, x.min(dim=1).values]
    for i, (x, y) in enumerate(zip(*views, strict=True)):
        result = stats.ks_2samp(x.numpy(), y.numpy())
        assert result.pvalue > ALPHA, f"view {i}: KS distance {result.statistic:.3f}, p = {result.pvalue:.1e}"
