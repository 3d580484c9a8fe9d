"""A policy under every runtime: the same samples, whatever changes between two chunks."""

from __future__ import annotations

import pytest
import torch
from tiny_policy import tiny_obs, tiny_policy

from diffpolicy_spec import SamplerConfig, draw_noise
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.runtime import RuntimeConfig, capture

SAMPLERS = {
    "ddpm": SamplerConfig("ddpm", 20),
    "nearest": SamplerConfig(num_inference_steps=20, options={"drafter": "nearest", "window": 8}),
    "corrector": SamplerConfig(num_inference_steps=20, options={"drafter": "picard", "window": 8}),
}
STATIC = RuntimeConfig("static")


def policy_with_draft(seed: int = 0):
    abar = torch.linspace(0.999, 0.01, 100)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draft = DraftNetwork(16, 10, 38, abar, clip=1.0, hidden=16, depth=1)
        torch.nn.init.normal_(draft.write.weight, std=0.1)
    return tiny_policy(seed, speculation=draft.stored())


def chunk(policy, config: SamplerConfig, batch: int, seed: int = 0):
    sampler = policy.bind(config)
    noise = draw_noise((batch, 16, 10), sampler.schedule, torch.Generator().manual_seed(seed))
    return policy.predict_action(tiny_obs(batch, seed), sampler=sampler, noise=noise).sample


def assert_same(policy, other, config: SamplerConfig, batch: int = 2, seed: int = 0) -> None:
    ours, expected = (chunk(p, config, batch, seed) for p in (policy, other))
    torch.testing.assert_close(ours.x0, expected.x0, atol=2e-3, rtol=1e-3)
    assert torch.equal(ours.stats.calls, expected.stats.calls)


@pytest.mark.parametrize("name", SAMPLERS)
def test_observations_batch_sizes_and_weights_may_change_between_chunks(name: str):
    eager, ours, config = policy_with_draft(), policy_with_draft().use(STATIC), SAMPLERS[name]
    for seed, batch in enumerate([1, 3, 3, 1, 4, 2]):
        assert_same(ours, eager, config, batch, seed)
    changed = {name: 1.3 * value for name, value in eager.network.state_dict().items()}
    eager.network.load_state_dict(changed)
    before = chunk(ours, config, 2)
    ours.network.load_state_dict(changed)  # in place
    assert not torch.allclose(before.x0, chunk(ours, config, 2).x0, atol=1e-3)
    assert_same(ours, eager, config)
    for p in (eager, ours):
        for parameter in p.network.parameters():  # elsewhere in memory
            parameter.data = parameter.data.clone().mul_(0.9)
    assert_same(ours, eager, config)
    assert len(ours.runner().reports) == 3  # of 1, 2 and 4 chains


def test_work_is_made_ready_again_only_when_the_weights_are_elsewhere():
    policy = policy_with_draft().use(STATIC)
    reports = []
    for change in (lambda p: None, lambda p: p.mul_(1.1), lambda p: setattr(p, "data", p.data.clone())):
        with torch.no_grad():
            for parameter in policy.network.parameters():
                change(parameter)
        chunk(policy, SAMPLERS["nearest"], 1)
        reports.append(next(iter(policy.runner().reports.values())))
    assert reports[0] is reports[1]
    assert reports[1] is not reports[2]
    assert reports[0].pieces == 3  # the first round, and rounds of 1 and 8 rows
    assert not reports[0].graphs


def test_a_sampler_may_have_a_runtime_of_its_own():
    policy = policy_with_draft()
    chunk(policy, SamplerConfig("ddpm", 20, runtime=STATIC), 1)
    assert not policy.runner().reports
    assert policy.runner(STATIC).reports


def test_half_precision_is_a_network_of_its_own_with_states_in_float32():
    policy, rounded = tiny_policy(), tiny_policy().use(RuntimeConfig(dtype="bfloat16"))
    full, half = (chunk(p, SAMPLERS["ddpm"], 2).x0 for p in (policy, rounded))
    assert half.dtype == torch.float32
    assert 0 < float((full - half).abs().max())
    torch.testing.assert_close(half, full, atol=0.2, rtol=0.0)
    assert_same(tiny_policy().use(RuntimeConfig("static", dtype="bfloat16")), rounded, SAMPLERS["ddpm"])


def test_a_runtime_may_set_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        chunk(tiny_policy().use(RuntimeConfig(threads=before + 1)), SAMPLERS["ddpm"], 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_several_devices_share_rows_where_that_was_measured_to_pay():
    eager, ours = policy_with_draft(), policy_with_draft().use(RuntimeConfig(devices=["cpu", "cpu"]))
    for seed, batch in enumerate([1, 3, 1]):
        assert_same(ours, eager, SAMPLERS["nearest"], batch, seed)
    times = ours.runner().measure_split(torch.zeros(1, 38), (16, 10))
    assert len(times.split) == len(times.rows)
    with pytest.raises(ValueError, match="there is one device"):
        eager.runner().measure_split(torch.zeros(1, 38), (16, 10))
    with pytest.raises(ValueError, match="needs mode=eager"):
        RuntimeConfig("static", devices=("cpu", "cpu"))


def test_what_a_runtime_cannot_be_is_refused():
    with pytest.raises(ValueError, match="unknown runtime mode 'fast'; known: eager, static"):
        RuntimeConfig("fast")
    with pytest.raises(ValueError, match="unknown runtime dtype 'int8'"):
        RuntimeConfig(dtype="int8")
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        RuntimeConfig(rounds=0)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        RuntimeConfig(threads=0)
    with pytest.raises(ValueError, match="CUDA graphs need a GPU, and the device is cpu: mode=static"):
        chunk(tiny_policy().use(RuntimeConfig("graphs")), SAMPLERS["ddpm"], 1)


def test_without_memory_for_graphs_a_warning_says_so_and_the_work_is_done(monkeypatch):
    """There is no GPU to fill up: the allocator and the capture are stand-ins."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(capture, "_graphs", full)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    done = []
    with pytest.warns(UserWarning, match="no memory to capture CUDA graphs.*kernel by kernel"):
        made = capture.capture({"a": lambda: done.append(1)}, lambda key: done.clear(), torch.device("cuda"),
                               warm=True, graphs=True)  # fmt: skip
    done.clear()
    made.run("a")
    assert done == [1]
    assert not made.report.graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_compiled_rounds_give_the_same_samples(name: str):
    eager, ours = policy_with_draft(), policy_with_draft().use(RuntimeConfig("compiled"))
    for seed, batch in enumerate([1, 2, 1]):
        assert_same(ours, eager, SAMPLERS[name], batch, seed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("mode", "rounds"), [("static", 1), ("graphs", 1), ("graphs", 6)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_on_a_gpu_the_same_samples(name: str, mode: str, rounds: int):
    eager, ours = policy_with_draft().to("cuda"), policy_with_draft().to("cuda").use(RuntimeConfig(mode, rounds))
    for seed, batch in enumerate([1, 3, 3, 1, 4]):
        assert_same(ours, eager, SAMPLERS[name], batch, seed)
    for p in (eager, ours):
        with torch.no_grad():
            for parameter in p.network.parameters():
                parameter.mul_(1.2)
    assert_same(ours, eager, SAMPLERS[name])
