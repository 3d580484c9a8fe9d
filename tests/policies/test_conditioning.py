"""Global and local conditions, inpainting, Transformers, DDIM: what the network is told, and what is drawn."""

import pytest
import torch
from closed_form import ALPHA
from scipy import stats
from tiny_policy import SCHEDULER, TRANSFORMER, obs_for, tiny_config, tiny_policy

from diffpolicy_spec import RuntimeConfig, SamplerConfig, draw_noise
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.policies import ConditionalUnet1D, ConditioningError, UnetConfig
from diffpolicy_spec.policies.conditioning import condition, over_plan

DDPM = SamplerConfig("ddpm", 20)
SPECULATIVE = SamplerConfig(num_inference_steps=20, options={"drafter": "nearest", "window": 8})
KINDS = {
    "local": {"conditioning": "local"},
    "inpainting": {"conditioning": "inpainting"},
    "transformer": TRANSFORMER,
    "inpainting transformer": {**TRANSFORMER, "conditioning": "inpainting"},
    "steps only": {"horizon": 8, "first_action": 0, "unet": UnetConfig((8, 16), diffusion_step_embed_dim=8)},
    "next action": {"first_action": 2},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_for(policy, batch, config, seed=0):
    shape = (batch, policy.config.horizon, policy.config.plan_dim)
    return draw_noise(shape, policy.bind(config).schedule, seeded(seed))


def features_of(config, batch=3):
    return torch.randn(batch, config.n_obs_steps, config.obs_dim, generator=seeded(1))


def test_a_global_condition_is_all_steps_one_after_the_other():
    config = tiny_config()
    features = features_of(config)
    given, known = condition(features, config)
    assert known is None
    assert torch.equal(given, torch.cat([features[:, 0], features[:, 1]], dim=1))


def test_a_local_condition_stands_beside_the_first_actions():
    config = tiny_config(conditioning="local")
    features = features_of(config)
    given, known = condition(features, config)
    assert known is None
    assert given.shape == (3, config.condition_dim)
    beside = given.view(3, 16, 19)
    assert torch.equal(beside[:, :2], features)
    assert not beside[:, 2:].any()


def test_inpainting_makes_the_first_steps_features_known():
    config = tiny_config(conditioning="inpainting")
    features = features_of(config)
    given, known = condition(features, config)
    assert given.shape == (3, 0)
    assert known.mask.shape == (3, 16, config.plan_dim) == (3, 16, 29)
    assert torch.equal(known.values[:, :2, 10:], features)
    assert known.mask[:, :2, 10:].all()
    assert int(known.mask.sum()) == 3 * 2 * 19


def test_what_a_user_knows_is_added_to_what_the_policy_knows():
    config = tiny_config(conditioning="inpainting")
    _, known = condition(features_of(config), config)
    mask = torch.zeros(3, 16, 10, dtype=torch.bool)
    mask[:, 4] = True
    both = over_plan(known, Inpainting(mask, torch.full((3, 16, 10), 0.25)), config)
    assert torch.equal(both.mask, torch.cat([mask, known.mask[:, :, 10:]], dim=2))
    assert (both.values[:, 4, :10] == 0.25).all()
    assert torch.equal(both.values[:, :, 10:], known.values[:, :, 10:])
    assert over_plan(known, None, config) is known
    with pytest.raises(ValueError, match=r"shape \(3, 16, 10\), got \(3, 16, 29\)"):
        over_plan(known, known, config)
    with pytest.raises(ValueError, match="is of 2 chains, the observations are of 3"):
        over_plan(known, Inpainting(mask[:2], torch.zeros(2, 16, 10)), config)


def test_the_local_condition_enters_after_the_first_block_only():
    torch.manual_seed(0)
    network = ConditionalUnet1D(4, 3, 8, (8, 16), 3, 8, local_cond_dim=5).eval()
    x, t, glob, local = torch.randn(2, 8, 4), torch.tensor([3, 60]), torch.randn(2, 3), torch.randn(2, 8, 5)
    entered = {}
    network.down_modules[0][1].register_forward_pre_hook(lambda module, given: entered.update(x=given[0]))
    out = network(x, t, torch.cat([glob, local.flatten(1)], dim=1))
    film = torch.cat([network.diffusion_step_encoder(t), glob], dim=1)
    first = network.down_modules[0][0](x.transpose(1, 2), film)
    expected = first + network.local_cond_encoder[0](local.transpose(1, 2), film)
    torch.testing.assert_close(entered["x"], expected)
    assert [n for n in network.state_dict() if n.startswith("local_cond_encoder.1.")]
    with torch.no_grad():
        for p in network.local_cond_encoder[1].parameters():  # never added: published behaviour
            p.mul_(3)
        assert torch.equal(network(x, t, torch.cat([glob, local.flatten(1)], dim=1)), out)
    with pytest.raises(ValueError, match=r"condition must be \(2, 43\), got \(2, 3\)"):
        network(x, t, glob)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_the_chain_of_the_network_written_out(kind):
    """Pin what is known, call the network with what it takes, step; then the actions, in their own units."""
    policy = tiny_policy(**KINDS[kind])
    config, obs = policy.config, obs_for(policy.config)
    sampler, noise = policy.bind(DDPM), noise_for(policy, 3, DDPM)
    given, known = policy.condition(obs)
    schedule, x = sampler.schedule, noise.start
    for k in range(schedule.num_steps):
        x = x if known is None else torch.where(known.mask, known.values, x)
        step = torch.full((3,), k)
        out = policy.network(x, schedule.timesteps[step], given if given.shape[1] else None)
        m = schedule.predict_x0(out, x, step)
        x = schedule.A[k].float() * m + schedule.B[k].float() * x + schedule.sigma[k].float() * noise.steps[k]
    x = x if known is None else torch.where(known.mask, known.values, x)
    found = policy.predict_action(obs, sampler=sampler, noise=noise)
    torch.testing.assert_close(found.plan, x, atol=1e-4, rtol=1e-4)
    assert found.action_pred.shape == (3, config.horizon, 10)
    torch.testing.assert_close(found.action_pred, policy.normalizer.unnormalize("action", x[..., :10]),
                               atol=1e-3, rtol=1e-3)  # fmt: skip
    assert torch.equal(found.action, found.action_pred[:, config.first : config.first + 8])
    assert found.action.shape == (3, 8, 10)


@pytest.mark.parametrize("sampler", [DDPM, SPECULATIVE], ids=["ddpm", "speculative"])
@pytest.mark.parametrize("kind", KINDS)
def test_static_rounds_draw_the_same(kind, sampler):
    eager, static = tiny_policy(**KINDS[kind]), tiny_policy(**KINDS[kind]).use(RuntimeConfig("static"))
    plan = None
    for seed, batch in enumerate([1, 3, 2]):
        obs = obs_for(eager.config, batch, seed)
        ours, expected = (
            p.predict_action(obs, sampler=p.bind(sampler), noise=noise_for(p, batch, sampler, seed),
                             generator=seeded(seed), previous_plan=plan[:1].expand(batch, -1, -1) if seed else None)
            for p in (static, eager)
        )  # fmt: skip
        torch.testing.assert_close(ours.plan, expected.plan, atol=2e-3, rtol=1e-3)
        assert torch.equal(ours.sample.stats.calls, expected.sample.stats.calls)
        plan = expected.plan


@pytest.mark.parametrize("kind", ["local", "inpainting", "transformer", "inpainting transformer"])
def test_speculative_chunks_have_the_law_of_sequential_ones(kind):
    """KS on projections of the free coordinates; 1500 samples a side see a distance of 0.10."""
    n, config = 1500, SamplerConfig(num_inference_steps=10, options={"drafter": "picard", "window": 6})
    policy = tiny_policy(**KINDS[kind], horizon=8, n_action_steps=6)
    with torch.no_grad():  # a network that says something
        for p in policy.network.parameters():
            p.mul_(1.5)
    obs = {key: value.repeat(n, axis=0) for key, value in obs_for(policy.config, 1).items()}
    step_by_step = SamplerConfig("ddpm", 10)
    ours = policy.predict_action(obs, sampler=policy.bind(config), generator=seeded(1))
    theirs = policy.predict_action(obs, sampler=policy.bind(step_by_step), generator=seeded(2))
    assert float(ours.sample.stats.calls.double().mean()) < 9
    a, b = (out.plan[..., :10].flatten(1) for out in (ours, theirs))
    centre = b.mean(0)
    directions = torch.linalg.svd(b - centre, full_matrices=False).Vh[:5]
    views = [((x - centre) @ directions.T, (x - centre).norm(dim=1, keepdim=True)) for x in (a, b)]
    for x, y in zip(*(torch.cat(view, dim=1).T for view in views), strict=True):
        result = stats.ks_2samp(x.numpy(), y.numpy())
        assert result.pvalue > ALPHA, f"KS distance {result.statistic:.3f}, p = {result.pvalue:.1e}"


def test_a_users_own_inpainting_over_the_actions():
    for kind in ("inpainting", "local"):
        policy = tiny_policy(**KINDS[kind])
        mask = torch.zeros(2, 16, 10, dtype=torch.bool)
        mask[:, 0, :3] = True
        given = Inpainting(mask, torch.full((2, 16, 10), 0.5))
        obs = obs_for(policy.config, 2)
        out = policy.predict_action(obs, sampler=policy.bind(SPECULATIVE), inpaint=given, generator=seeded())
        assert (out.plan[:, 0, :3] == 0.5).all()
        assert not (out.plan[:, 1, :3] == 0.5).any()
        if kind == "inpainting":
            assert torch.equal(out.plan[:, :2, 10:], policy.features(obs))


def test_an_inpainting_policy_has_no_condition():
    policy = tiny_policy(conditioning="inpainting")
    with pytest.raises(ConditioningError, match=r"conditioned by inpainting: .* gains, draft networks"):
        policy.encode(obs_for(policy.config))


def test_a_policys_own_number_of_steps():
    policy = tiny_policy(num_inference_steps=10)
    assert policy.bind().schedule.num_steps == 10
    assert policy.bind(SamplerConfig("ddpm")).schedule.num_steps == 10
    assert policy.bind(SamplerConfig("ddpm", 50)).schedule.num_steps == 50


def test_a_policy_used_with_ddim():
    policy = tiny_policy(scheduler={**SCHEDULER, "_class_name": "DDIMScheduler"}, num_inference_steps=10)
    default = policy.bind()
    assert (default.config.method, default.schedule.kind, default.schedule.num_steps) == ("ddim", "ddim", 10)
    assert not default.schedule.sigma.any()
    exact = policy.bind(SamplerConfig("speculative"))
    assert (exact.schedule.kind, exact.schedule.num_steps) == ("ddpm", 100)
    assert policy.bind(SamplerConfig("speculative", 25)).schedule.num_steps == 25
    noisy = policy.bind(SamplerConfig("speculative", eta=0.5)).schedule
    assert (noisy.kind, noisy.eta, noisy.num_steps) == ("ddim", 0.5, 10)
    obs, start = obs_for(policy.config), torch.randn(3, 16, 10, generator=seeded())
    first, again = (policy.predict_action(obs, noise=start, generator=seeded(s)).plan for s in (1, 2))
    assert torch.equal(first, again)  # nothing random but the start
    assert policy.predict_action(obs, sampler=exact, generator=seeded()).sample.stats.calls.max() < 100
