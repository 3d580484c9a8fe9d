"""The draft network: its scales, its storage, what damaged files say."""

import pytest
import torch

from diffpolicy_spec.policies.draft import DraftNetwork


def network(clip=1.0, seed=0):
    torch.manual_seed(seed)
    made = DraftNetwork(8, 3, 5, torch.linspace(0.99, 1e-4, 20), clip=clip, hidden=16, depth=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


def inputs(n=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, 3, generator=g), torch.randint(20, (n,), generator=g), torch.randn(n, 5, generator=g)


def test_rows_do_not_influence_each_other():
    net, (x, t, c) = network(), inputs()
    together = net(x, t, c)
    assert together.shape == x.shape
    for i in range(len(x)):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], c[i : i + 1])[0], together[i])


def test_x0_is_clipped_as_the_policys_is():
    x, t, c = inputs()
    assert float(network(clip=0.05)(x, t, c).abs().max()) <= 0.05 + 1e-6
    assert float(network(clip=None)(x, t, c).abs().max()) > 0.05


def test_a_fresh_network_says_the_mean_of_unit_scaled_data():
    """Before training x0 = c_skip x: the best linear guess for data of standard deviation 0.5."""
    abar = torch.tensor([0.5, 0.9999])
    fresh = DraftNetwork(8, 3, 5, abar, clip=None, hidden=16, depth=2).eval().requires_grad_(False)
    x, _, c = inputs()
    expected = 0.5**0.5 * 0.25 / (0.5 * 0.25 + 0.5)
    torch.testing.assert_close(fresh(x, torch.zeros(6, dtype=torch.long), c), expected * x)
    nearly_clean = fresh(x, torch.ones(6, dtype=torch.long), c)
    torch.testing.assert_close(nearly_clean, x, rtol=1e-3, atol=1e-3)


def test_stored_and_read_back():
    net, (x, t, c) = network(), inputs()
    stored = net.stored()
    assert all(name.startswith("draft.") for name in stored)
    again = DraftNetwork.from_stored(stored | {"gains.timesteps": torch.zeros(3)})
    assert (again.hidden, again.depth, again.horizon, again.action_dim) == (16, 2, 8, 3)
    torch.testing.assert_close(again(x, t, c), net(x, t, c), atol=5e-3, rtol=5e-3)
    for name, value in again.stored().items():  # stored once, it does not change any more
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)
    assert DraftNetwork.from_stored({"gains.timesteps": torch.zeros(3)}) is None


@pytest.mark.parametrize("name", ["draft.shape", "draft.abar", "draft.blocks.1.weight", "draft.write.bias"])
def test_missing_weights_are_named(name):
    stored = network().stored()
    del stored[name]
    with pytest.raises(ValueError, match=r"(?s)damaged.*dps-train draft=PATH"):
        DraftNetwork.from_stored(stored)


def test_weights_that_do_not_fit_or_are_not_finite():
    stored = network().stored()
    with pytest.raises(ValueError, match="damaged"):
        DraftNetwork.from_stored(stored | {"draft.write.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="NaN"):
        DraftNetwork.from_stored(stored | {"draft.write.bias": torch.full((24,), torch.nan)})


def test_training_changes_the_time_tables():
    net, (x, t, c) = network(), inputs()
    before = net(x, t, c)
    net.train()
    net.read_time[2].bias.add_(0.5)
    net.eval()
    assert not torch.allclose(net(x, t, c), before)
