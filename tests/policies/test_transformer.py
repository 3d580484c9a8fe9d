"""The Transformer: published names, size and masks; its inference form computes the same."""

import re

import pytest
import torch

from diffpolicy_spec.policies.inference.transformer import InferenceTransformer
from diffpolicy_spec.policies.transformer import TransformerForDiffusion

T, DA, TO, DO = 8, 3, 2, 5
STEPS = 50


def small(**changes):
    """Weights large enough that every part shows in the output."""
    torch.manual_seed(0)
    sizes = {"cond_dim": DO, "n_layer": 2, "n_head": 4, "n_emb": 32} | changes
    network = TransformerForDiffusion(DA, T, TO, **sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.2 * sizes["n_emb"] ** -0.5 * torch.randn_like(parameter))
    return network.requires_grad_(False)


def rows(n, cond=TO * DO):
    torch.manual_seed(n)
    return torch.randn(n, T, DA), torch.randint(STEPS, (n,)), torch.randn(n, cond)


@pytest.fixture(scope="module")
def published():
    """Published low-dimensional runs; 20 numbers an observation, 10 an action."""
    with torch.device("meta"):
        return TransformerForDiffusion(10, 10, 2, 20)


def test_published_size(published):
    # By hand, not from this implementation: attention 4 E^2, twice; perceptron 8 E^2; three normalisations.
    e = 256
    layer = 2 * (4 * e * e + 4 * e) + (8 * e * e + 5 * e) + 3 * 2 * e
    embeddings = (10 * e + e) + (20 * e + e) + (10 + 3) * e
    encoder = 8 * e * e + 5 * e
    assert sum(p.numel() for p in published.parameters()) == 8 * layer + embeddings + encoder + 2 * e + (e * 10 + 10)
    assert 8.9e6 < 8 * layer + encoder < 9.0e6


def test_published_names(published):
    shapes = {name: tuple(value.shape) for name, value in published.state_dict().items()}
    for name, shape in {
        "pos_emb": (1, 10, 256),
        "cond_pos_emb": (1, 3, 256),
        "mask": (10, 10),
        "memory_mask": (10, 3),
        "input_emb.weight": (256, 10),
        "cond_obs_emb.bias": (256,),
        "encoder.0.weight": (1024, 256),
        "encoder.2.bias": (256,),
        "decoder.layers.7.self_attn.in_proj_weight": (768, 256),
        "decoder.layers.0.self_attn.out_proj.weight": (256, 256),
        "decoder.layers.3.multihead_attn.in_proj_bias": (768,),
        "decoder.layers.0.linear1.weight": (1024, 256),
        "decoder.layers.0.norm3.weight": (256,),
        "ln_f.bias": (256,),
        "head.weight": (10, 256),
    }.items():
        assert shapes[name] == shape
    pattern = re.compile(
        r"(cond_)?pos_emb|(memory_)?mask|(input_emb|cond_obs_emb|ln_f|head|encoder\.[02])\.(weight|bias)|"
        r"decoder\.layers\.[0-7]\.((self|multihead)_attn\.(in_proj_(weight|bias)|out_proj\.(weight|bias))|"
        r"(linear[12]|norm[123])\.(weight|bias))"
    )
    assert [name for name in shapes if not pattern.fullmatch(name)] == []
    with torch.device("meta"):
        deep = TransformerForDiffusion(10, 10, 2, 20, n_cond_layers=4)
        bare = TransformerForDiffusion(10, 10, 2, 0, causal_attn=False)
    assert "encoder.layers.3.self_attn.in_proj_weight" in deep.state_dict()
    assert not {"mask", "memory_mask", "cond_obs_emb.weight"} & set(bare.state_dict())


def test_initial_weights():
    network = TransformerForDiffusion(10, 16, 2, 20, n_layer=1)
    layer = network.decoder.layers[0]
    for weight in (network.pos_emb, network.head.weight, layer.self_attn.in_proj_weight, layer.linear1.weight):
        assert abs(float(weight.detach().std()) / 0.02 - 1) < 0.1
    assert not torch.any(layer.multihead_attn.in_proj_bias)
    assert not torch.any(layer.linear2.bias)


def influence(network, move):
    """(T,) whether the output of each action changes when `move` changes x or the condition in place."""
    x, t, c = rows(1)
    before = network(x, t, c)
    move(x, c)
    return ((network(x, t, c) - before).abs().amax(2)[0] > 1e-6).tolist()


def move_action(i):
    return lambda x, c: x[:, i].add_(1)


def move_observation(s):
    return lambda x, c: c[:, s * DO : (s + 1) * DO].add_(1)


def test_causal_masks():
    network = small()
    assert influence(network, move_action(3)) == [t >= 3 for t in range(T)]
    assert influence(network, move_observation(0)) == [True] * T
    assert influence(network, move_observation(1)) == [t >= 1 for t in range(T)]


def test_without_masks_all_see_all():
    network = small(causal_attn=False)
    assert influence(network, move_action(3)) == [True] * T
    assert influence(network, move_observation(1)) == [True] * T


def test_rows_are_independent_and_there_is_no_dropout():
    network = small()
    x, t, c = rows(5)
    together = network(x, t, c)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], c[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    x[0] = float("nan")
    assert torch.isfinite(network(x, t, c)[1:]).all()
    assert not torch.allclose(network.train()(x, t, c)[1:], together[1:])


def test_timestep_may_be_a_number():
    network = small()
    x, _, c = rows(3)
    expected = network(x, torch.full((3,), 42), c)
    torch.testing.assert_close(network(x, 42, c), expected)
    torch.testing.assert_close(network(x, torch.tensor(42), c), expected)
    assert not torch.allclose(network(x, 41, c), expected)


@pytest.mark.parametrize(
    ("sample", "cond", "message"),
    [
        ((2, 9, 3), (2, 10), r"\(N, 8, 3\), got \(2, 9, 3\)"),
        ((2, 8, 4), (2, 10), r"\(N, 8, 3\)"),
        ((2, 8, 3), (2, 9), r"\(2, 10\), got \(2, 9\)"),
        ((2, 8, 3), (1, 10), r"\(2, 10\), got \(1, 10\)"),
        ((2, 8, 3), None, r"\(2, 10\), got \(2, 0\)"),
    ],
)
def test_wrong_shapes(sample, cond, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(sample), 0, None if cond is None else torch.zeros(cond))


def test_wrong_sizes():
    with pytest.raises(ValueError, match="n_emb=30 must be divisible by n_head=4"):
        small(n_emb=30)
    with pytest.raises(ValueError, match="n_cond_layers > 0"):
        InferenceTransformer(small(n_cond_layers=1), STEPS)


CONFIGS = [{}, {"causal_attn": False}, {"n_head": 1, "n_layer": 1}, {"n_head": 8, "n_layer": 3}, {"cond_dim": 0}]
CONFIGS += [{"cond_dim": 0, "causal_attn": False}, {"n_emb": 384, "n_layer": 1}]  # the last has packed weights


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("n", [1, 7])
def test_inference_form_equals_the_module(config, n):
    network = small(**config)
    x, t, c = rows(n, network.global_cond_dim)
    expected = network(x, t, c if network.global_cond_dim else None)
    inference = InferenceTransformer(network, STEPS)
    found = inference(x, t, inference.features(c))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_form_in_half_precision(dtype):
    network = small()
    x, t, c = rows(7)
    expected = network(x, t, c)
    inference = InferenceTransformer(network, STEPS, dtype)
    found = inference(x, t, inference.features(c))
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 1e-6 < error < (0.03 if dtype == torch.bfloat16 else 0.005)
    assert inference.nbytes < 0.6 * InferenceTransformer(network, STEPS).nbytes


def test_inference_rows_are_independent():
    inference = InferenceTransformer(small(), STEPS)
    x, t, c = rows(5)
    features = inference.features(c)
    together = inference(x, t, features)
    alone = torch.cat([inference(x[i : i + 1], t[i : i + 1], features[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    x[0], features[0] = float("nan"), float("nan")
    assert torch.isfinite(inference(x, t, features)[1:]).all()


def test_changed_weights_are_seen():
    network, other = small(), small(n_layer=2)
    with torch.no_grad():
        other.pos_emb.add_(1)
        other.decoder.layers[0].norm2.bias.add_(1)
    inference = InferenceTransformer(network, STEPS)
    x, t, c = rows(4)
    for change in (
        lambda: network.load_state_dict(other.state_dict()),
        lambda: network.decoder.layers[1].linear1.weight.mul_(1.5),
        lambda: setattr(network.head.weight, "data", torch.randn_like(network.head.weight)),
    ):
        before = inference(x, t, inference.features(c))
        addresses = [inference._table.value.data_ptr(), inference._place.value.data_ptr()]
        change()
        after = inference(x, t, inference.features(c))
        torch.testing.assert_close(after, network(x, t, c), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(before, after, atol=1e-3)
        # Captured graphs read the tensors they were captured with.
        assert addresses == [inference._table.value.data_ptr(), inference._place.value.data_ptr()]


def test_a_condition_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"\(B, 10\), got \(2, 11\)"):
        InferenceTransformer(small(), STEPS).features(torch.zeros(2, 11))


@pytest.mark.slow
def test_inference_form_compiles_in_one_graph():
    network = small()
    inference = InferenceTransformer(network, STEPS)
    x, t, c = rows(4)
    compiled = torch.compile(inference.__call__, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t, inference.features(c)), network(x, t, c), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_sees_new_weights():
    network = small().cuda()
    inference = InferenceTransformer(network, STEPS)
    x, t, c = (given.cuda() for given in rows(4))
    features = inference.features(c)
    inference(x, t, features)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = inference(x, t, features)
    network.decoder.layers[0].linear2.weight.mul_(2)
    features.copy_(inference.features(c))
    graph.replay()
    torch.testing.assert_close(out, network(x, t, c), rtol=1e-3, atol=1e-3)
