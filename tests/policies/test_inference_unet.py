"""The U-Net laid out for inference: equal to the module, up to date with its weights, rows by themselves."""

import pytest
import torch

from diffpolicy_spec.policies.inference import inference_network
from diffpolicy_spec.policies.inference.toom_cook import toom_cook
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.runtime.network import Watch

STEPS = 20
SMALL = {"input_dim": 7, "global_cond_dim": 11, "diffusion_step_embed_dim": 16, "down_dims": (16, 24, 48)}
# Wide enough for packed weights and for tiles.
WIDE = {"input_dim": 3, "global_cond_dim": 5, "diffusion_step_embed_dim": 8, "down_dims": (96, 256)}
LOCAL = {"local_cond_dim": 6}


def network(**changes):
    torch.manual_seed(0)
    net = ConditionalUnet1D(**SMALL | changes).eval().requires_grad_(False)
    for p in net.parameters():  # norms and biases as after training, not 1 and 0
        p.add_(0.1 * torch.randn_like(p))
    return net


def batch(net, rows, horizon=16, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, horizon, net.input_dim, generator=g)
    t = torch.randint(0, STEPS, (rows,), generator=g)
    return x, t, torch.randn(rows, net.global_cond_dim + horizon * net.local_cond_dim, generator=g)


def run(inference, x, t, condition):
    return inference(x, t, inference.features(condition))


def deviation(found, expected):
    """Relative to the expected values' root mean square."""
    return float((found - expected).abs().max() / expected.square().mean().sqrt())


@pytest.mark.parametrize("rows", [1, 3, 8, 40])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cond_predict_scale": False},
        {"kernel_size": 3},
        {"kernel_size": 1},
        {"kernel_size": 7, "n_groups": 4},
        {"down_dims": (16,)},
        {"down_dims": (40, 8)},
        {"down_dims": (8, 16, 24, 40)},
        {"global_cond_dim": 0},
        LOCAL,
        LOCAL | {"global_cond_dim": 0, "cond_predict_scale": False, "down_dims": (16,)},
        WIDE | {"local_cond_dim": 4},
        WIDE,
        WIDE | {"kernel_size": 3},
    ],
    ids=str,
)
def test_equals_the_module(changes, rows):
    net = network(**changes)
    x, t, condition = batch(net, rows)
    expected = net(x, t, condition if condition.shape[1] else None)
    found = run(inference_network(net, STEPS), x, t, condition)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert deviation(found, expected) < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@pytest.mark.parametrize("changes", [{}, WIDE, LOCAL], ids=["small", "wide", "local"])
def test_low_precision_is_near(changes, dtype, tolerance):
    net = network(**changes)
    x, t, condition = batch(net, 9)
    inference = inference_network(net, STEPS, dtype)
    assert inference.dtype == dtype
    found = run(inference, x, t, condition)
    assert found.dtype == torch.float32
    assert 0 < deviation(found, net(x, t, condition)) < tolerance


def test_horizon_that_tiles_do_not_divide():
    net = network(**WIDE)
    x, t, condition = batch(net, 8, horizon=10)
    assert deviation(run(inference_network(net, STEPS), x, t, condition), net(x, t, condition)) < 1e-4


@pytest.mark.parametrize("changes", [{}, WIDE, LOCAL], ids=["small", "wide", "local"])
def test_rows_do_not_see_each_other(changes):
    net = network(**changes)
    inference = inference_network(net, STEPS)
    x, t, condition = batch(net, 24)
    together = run(inference, x, t, condition)
    alone = torch.cat([run(inference, x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(24)])
    assert deviation(together, alone) < 1e-4


def swapped(net):
    torch.manual_seed(5)
    return {name: torch.randn_like(value) * 0.2 for name, value in net.state_dict().items()}


def _multiply(net):
    for p in net.parameters():
        p.mul_(1.5)


def _one_bias(net):
    net.final_conv[1].bias.add_(1)


def _one_norm(net):
    net.mid_modules[0].blocks[1].block[1].weight.mul_(2)


def _replace_data(net):
    for p in net.parameters():
        p.data = p.data * 0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.load_state_dict(swapped(net)),
        lambda net: net.load_state_dict(swapped(net), assign=True),
        _multiply,
        _one_bias,
        _one_norm,
        _replace_data,
    ],
    ids=["load", "assign", "multiply", "one bias", "one norm", "data"],
)
@pytest.mark.parametrize("inferring", [False, True])
def test_changed_weights_are_seen(change, inferring):
    net = network(**WIDE)
    x, t, condition = batch(net, 8)
    with torch.inference_mode(inferring):
        inference = inference_network(net, STEPS)
        before = run(inference, x, t, condition)
    change(net)
    expected = net(x, t, condition)
    assert deviation(before, expected) > 1e-2
    assert deviation(run(inference, x, t, condition), expected) < 1e-4


def test_weights_replaced_between_chunks_are_seen_every_time():
    """Although the allocator likes to give the next weights the address of the last."""
    net = network()
    watch = Watch(net)
    assert watch.changed()
    for _ in range(10):
        assert not watch.changed()
        for p in net.parameters():
            p.data = p.data + 1
        assert watch.changed()


def test_refreshing_keeps_the_tensors_in_place():
    """What a captured graph reads stays where it is, and is not touched while the weights are the same."""
    net = network()
    inference = inference_network(net, STEPS)
    condition = torch.zeros(1, net.global_cond_dim)

    def places():
        return [id(part) for part in inference._parts], [
            (part.value if hasattr(part, "value") else part._weight).data_ptr() for part in inference._parts
        ]

    before = places()
    version = inference._table.value._version
    inference.features(condition)
    assert inference._table.value._version == version
    net.load_state_dict(swapped(net))
    inference.features(condition)
    assert inference._table.value._version > version
    assert places() == before


def test_features_are_of_the_condition_alone():
    """One row of features serves every state and timestep of its chunk."""
    net = network()
    inference = inference_network(net, STEPS)
    x, t, condition = batch(net, 6)
    features = inference.features(condition[:1])
    expected = net(x, t, condition[:1].expand(6, -1))
    assert deviation(inference(x, t, features.expand(6, -1)), expected) < 1e-4


def test_bytes_are_counted():
    net = network()
    parameters = sum(p.nbytes for p in net.parameters())
    full, half = (inference_network(net, STEPS, dtype).nbytes for dtype in (torch.float32, torch.bfloat16))
    assert 0.5 * parameters < half < full < 3 * parameters


def test_a_network_without_a_layout_is_called_as_it_is():
    net = torch.nn.Bilinear(2, 3, 2)
    inference = inference_network(foreign := _Foreign(net), STEPS)
    x, t, condition = torch.randn(4, 5, 2), torch.arange(4), torch.randn(4, 3)
    torch.testing.assert_close(run(inference, x, t, condition), foreign(x, t, condition))
    with pytest.raises(ValueError, match="_Foreign has no layout"):
        inference_network(foreign, STEPS, torch.bfloat16)


class _Foreign(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, condition):
        return self.net(x, condition[:, None].expand(-1, x.shape[1], -1).contiguous()) + t[:, None, None]


def test_a_horizon_that_levels_do_not_divide_is_refused():
    net = network()
    x, t, condition = batch(net, 2, horizon=10)
    with pytest.raises(ValueError, match="divisible by 4"):
        run(inference_network(net, STEPS), x, t, condition)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph_and_sees_new_weights(dtype):
    net = network(**WIDE | {"down_dims": (96, 512)})
    inference = inference_network(net, STEPS, dtype)
    compiled = torch.compile(inference.__call__, fullgraph=True, dynamic=False)
    for rows in (1, 12):
        x, t, condition = batch(net, rows)
        for _ in range(2):
            features = inference.features(condition)
            expected = inference(x, t, features)
            assert deviation(compiled(x, t, features), expected) < (1e-4 if dtype == torch.float32 else 0.15)
            net.load_state_dict(swapped(net))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_sees_new_weights_and_a_move_is_followed():
    net = network(**WIDE)
    inference = inference_network(net, STEPS)
    cpu = x, t, condition = batch(net, 6)
    on_cpu = run(inference, *cpu)
    net.cuda()
    x, t, condition = (v.cuda() for v in cpu)
    features = inference.features(condition)
    assert deviation(inference(x, t, features).cpu(), on_cpu) < 1e-2  # TF32, should it be on
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = inference(x, t, features)
    net.load_state_dict(swapped(net))
    features.copy_(inference.features(condition))
    graph.replay()
    assert deviation(captured, net(x, t, condition)) < 1e-2
    net.cpu()
    assert deviation(run(inference, *cpu), net(*cpu)) < 1e-4


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="float64"):
        inference_network(network(), STEPS, torch.float64)


@pytest.mark.parametrize(("m", "r"), [(4, 5), (4, 3), (2, 5), (1, 5), (3, 1)])
def test_toom_cook_is_the_correlation(m, r):
    A, G, B = toom_cook(m, r)
    torch.manual_seed(0)
    w, x = torch.randn(r, dtype=torch.float64), torch.randn(m + r - 1, dtype=torch.float64)
    expected = torch.stack([w @ x[i : i + r] for i in range(m)])
    torch.testing.assert_close(A @ ((G @ w) * (B @ x)), expected, rtol=1e-12, atol=1e-12)


def test_toom_cook_says_how_far_it_goes():
    with pytest.raises(ValueError, match="shorter tiles"):
        toom_cook(6, 5)
