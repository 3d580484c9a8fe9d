"""Continuous batching: each chunk is the one its robot would get alone, whatever else is under way."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policy import CAMERAS, TRANSFORMER, obs_for, tiny_obs, tiny_policy

from diffpolicy_spec.choice.sharing import Sharing
from diffpolicy_spec.policies.committed import inpainting_of
from diffpolicy_spec.policies.engine import Engine, Finished
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig

SAMPLERS = {
    "default": None,
    "blocks": SamplerConfig(options={"verifier": "block", "window": 12}),
    "secant": SamplerConfig(options={"memory": 3}),
    "parent": SamplerConfig(options={"drafter": "parent"}),
    "drift": SamplerConfig(options={"drafter": "drift_nearest"}),
    "windows by step": SamplerConfig(options={"window": [8] * 10 + [4] * 10}, num_inference_steps=20),
    "tree": SamplerConfig("tree"),
    "paradigms": SamplerConfig("paradigms"),
    "ddpm": SamplerConfig("ddpm", 20),
    "ddim": SamplerConfig("ddim", 10),
}


def one(i: int) -> dict[str, np.ndarray]:
    """Observation i, of one robot."""
    return {key: value[0] for key, value in tiny_obs(1, seed=i).items()}


def alone(policy, config, i: int) -> np.ndarray:
    sampler = policy.bind(config)
    output = policy.predict_action(tiny_obs(1, seed=i), sampler=sampler, generator=[torch.Generator().manual_seed(i)])
    return output.action_pred[0].numpy()


def serve(engine: Engine, requests: int, arrivals: np.random.Generator) -> list[Finished]:
    """Requests that come while others are under way; answers by number of the request."""
    tickets, answers = [], {}
    while len(answers) < requests:
        if len(tickets) < requests and arrivals.random() < 0.4:
            tickets.append(engine.submit(one(len(tickets)), seed=len(tickets)))
        answers |= {finished.ticket: finished for finished in engine.step()}
    return [answers[ticket] for ticket in tickets]


@pytest.mark.parametrize("config", SAMPLERS.values(), ids=SAMPLERS)
def test_a_chain_in_a_busy_pool_is_that_chain_alone(config):
    policy = tiny_policy()
    answers = serve(Engine(policy, config, max_chains=4, adaptive=False), 10, np.random.default_rng(0))
    same = 0
    for i, answer in enumerate(answers):
        assert answer.error is None
        assert answer.exact
        same += np.allclose(answer.action_pred, alone(policy, config, i), atol=1e-4)
    assert same >= 9  # the last bits of a batch may turn one acceptance in thousands
    assert np.mean([answer.shared for answer in answers]) > 1.5


def test_observations_are_checked_when_they_are_submitted():
    engine = Engine(tiny_policy())
    broken = one(0)
    broken["object"] = np.full_like(broken["object"], np.nan)
    for obs in ({}, {**one(0), "more": np.zeros(2)}, broken, None):
        with pytest.raises(ObservationError):
            engine.submit(obs)
    assert engine.waiting == 0
    assert engine.step() == []


def run_out(engine: Engine) -> dict[int, Finished]:
    answers = {}
    while engine.waiting or engine.under_way:
        answers |= {finished.ticket: finished for finished in engine.step()}
    return answers


def test_what_a_chunk_cost_is_told():
    policy = tiny_policy()
    engine = Engine(policy, max_chains=3, adaptive=False)
    tickets = [engine.submit(one(i), seed=i) for i in range(5)]
    assert engine.waiting == 5
    answers = run_out(engine)
    assert (engine.waiting, engine.under_way) == (0, 0)
    for i, ticket in enumerate(tickets):
        stats = policy.predict_action(tiny_obs(1, seed=i), generator=[torch.Generator().manual_seed(i)]).sample.stats
        answer = answers[ticket]
        told = (answer.calls, answer.evaluations, answer.accepted, answer.rejected)
        assert told == tuple(int(v) for v in (stats.calls, stats.evaluations, stats.accepted, stats.rejected))
        assert answer.latency_ms > 0
        assert 1 <= answer.shared <= 3


def test_shared_out_rows_are_fewer_and_the_chunks_are_there():
    engine = Engine(tiny_policy(), SamplerConfig(options={"window": 32}), max_chains=4)
    assert isinstance(engine._lanes[0].pool.share, Sharing)
    answers = serve(engine, 30, np.random.default_rng(0))
    assert all(a.error is None and a.exact and np.isfinite(a.action_pred).all() for a in answers)
    assert all(a.accepted + a.calls == 100 for a in answers)


def test_committed_actions_are_where_they_belong_and_others_do_not_notice():
    policy = tiny_policy()
    engine = Engine(policy, max_chains=4, adaptive=False)
    first, frozen = policy.config.first, np.linspace(0.5, 1.5, 30).reshape(3, 10)
    free = engine.submit(one(0), seed=0)
    engine.step()
    bound = engine.submit(one(1), seed=1, committed=frozen)
    again = engine.submit(one(2), seed=2)
    answers = run_out(engine)
    np.testing.assert_allclose(answers[bound].action_pred[first : first + 3], frozen, atol=1e-4)
    expected = policy.predict_action(
        tiny_obs(1, seed=1), generator=[torch.Generator().manual_seed(1)], inpaint=inpainting_of(policy, frozen)
    )
    np.testing.assert_allclose(answers[bound].action_pred, expected.action_pred[0], atol=1e-4)
    np.testing.assert_allclose(answers[free].action_pred, alone(policy, None, 0), atol=1e-4)
    np.testing.assert_allclose(answers[again].action_pred, alone(policy, None, 2), atol=1e-4)
    with pytest.raises(ValueError, match="committed"):
        engine.submit(one(0), committed=np.zeros((3, 2)))
    assert engine.waiting == 0


@pytest.mark.parametrize("changes", [
    {"conditioning": "inpainting"}, {"conditioning": "local"}, {**CAMERAS}, {**TRANSFORMER},
], ids=["inpainting", "local", "cameras", "transformer"])  # fmt: skip
def test_every_kind_of_policy_is_served(changes):
    policy = tiny_policy(**changes)
    engine = Engine(policy, max_chains=3, adaptive=False)
    obs = [obs_for(policy.config, 1, seed=i) for i in range(5)]
    tickets = [engine.submit({k: v[0] for k, v in o.items()}, seed=i) for i, o in enumerate(obs)]
    answers = run_out(engine)
    for i, ticket in enumerate(tickets):
        expected = policy.predict_action(obs[i], generator=[torch.Generator().manual_seed(i)])
        np.testing.assert_allclose(answers[ticket].action_pred, expected.action_pred[0], atol=1e-4)


def test_images_of_bytes_and_of_floats_that_come_together_are_each_what_they_are():
    """Joined as they are, bytes would count as floats of 0 ... 255."""
    policy = tiny_policy(**CAMERAS)
    engine = Engine(policy, max_chains=3, adaptive=False)
    obs = [obs_for(policy.config, 1, seed=i) for i in range(3)]
    for camera, shape in policy.config.image_shapes.items():
        pixels = np.random.default_rng(0).integers(0, 256, (1, policy.config.n_obs_steps, *shape), np.uint8)
        obs[0][camera], obs[1][camera] = pixels, pixels / np.float32(255)
    tickets = [engine.submit({k: v[0] for k, v in o.items()}, seed=i) for i, o in enumerate(obs)]
    answers = run_out(engine)
    for i, ticket in enumerate(tickets):
        expected = policy.predict_action(obs[i], generator=[torch.Generator().manual_seed(i)])
        np.testing.assert_allclose(answers[ticket].action_pred, expected.action_pred[0], atol=1e-4)


def test_requests_without_a_seed_have_noise_of_their_own():
    engine = Engine(tiny_policy(), max_chains=2)
    tickets = [engine.submit(one(0)) for _ in range(4)]  # of one observation, two together and two after another
    answers = run_out(engine)
    drawn = np.stack([answers[ticket].action_pred for ticket in tickets])
    assert all(np.abs(drawn[i] - drawn[j]).max() > 1e-2 for i in range(4) for j in range(i))


def test_a_chunk_that_is_cancelled_is_not_drawn():
    engine = Engine(tiny_policy(), max_chains=2, adaptive=False)
    tickets = [engine.submit(one(i), seed=i) for i in range(4)]
    engine.step()
    assert (engine.under_way, engine.waiting) == (2, 2)
    assert engine.cancel(tickets[0])  # under way
    assert engine.cancel(tickets[3])  # waits
    assert not engine.cancel(99)
    assert set(run_out(engine)) == {tickets[1], tickets[2]}
    assert not engine.cancel(tickets[1])


def test_one_robots_nan_is_its_own():
    """The network returns NaN for a plan that holds a committed action of this robot."""
    policy = tiny_policy()
    engine = Engine(policy, max_chains=3, adaptive=False)
    lane = engine._lanes[0]
    honest, sick = lane.denoise, set()

    def denoise(x, t, chain):
        bad = torch.tensor([lane.requests[c].ticket in sick for c in chain.tolist()])
        return honest(x, t, chain).masked_fill(bad.view(-1, 1, 1), torch.nan)

    lane.pool.chains.networks.denoise = denoise
    tickets = [engine.submit(one(i), seed=i) for i in range(3)]
    engine.step()
    sick.add(tickets[1])
    (broken,) = engine.step()
    assert broken.ticket == tickets[1]
    assert isinstance(broken.error, FloatingPointError)
    assert broken.action_pred is None
    assert not broken.exact
    later = engine.submit(one(3), seed=3)  # in the slot it left
    answers = run_out(engine)
    for ticket, i in ((tickets[0], 0), (tickets[2], 2), (later, 3)):
        np.testing.assert_allclose(answers[ticket].action_pred, alone(policy, None, i), atol=1e-4)


def test_a_network_that_raises_costs_the_chains_under_way_and_no_more():
    policy = tiny_policy()
    engine = Engine(policy, max_chains=2, adaptive=False)
    lane = engine._lanes[0]
    honest = lane.denoise

    def denoise(x, t, chain):
        raise RuntimeError("out of memory")

    lane.pool.chains.networks.denoise = denoise
    tickets = [engine.submit(one(i), seed=i) for i in range(3)]
    lost = engine.step()
    assert {a.ticket for a in lost} == set(tickets[:2])
    assert all("out of memory" in str(a.error) for a in lost)
    lane.pool.chains.networks.denoise = honest
    answers = run_out(engine)
    np.testing.assert_allclose(answers[tickets[2]].action_pred, alone(policy, None, 2), atol=1e-4)


class Clock:
    """A clock that a network's calls move on."""

    def __init__(self, engine_options: dict, seconds: float = 0.01) -> None:
        self.now, self.seconds = 100.0, seconds
        self.engine = Engine(tiny_policy(), SamplerConfig("ddpm", 20), clock=lambda: self.now, **engine_options)
        networks = self.engine._lanes[0].pool.chains.networks
        honest = networks.denoise

        def denoise(x, t, chain):
            self.now += self.seconds
            return honest(x, t, chain)

        networks.denoise = denoise


def test_a_chain_that_would_be_late_is_finished_and_marked():
    """Calls of 10 ms: 20 of them are exact, and a chain with 110 ms is finished by 4 after at most 7."""
    clock = Clock({"max_chains": 4, "finish_steps": 4})
    engine = clock.engine
    for i in range(2):  # what a call takes is learned
        engine.submit(one(i))
    run_out(engine)
    begin = clock.now
    easy = engine.submit(one(0), seed=0, deadline=begin + 1.0)
    hard = engine.submit(one(1), seed=1, deadline=begin + 0.11)
    free = engine.submit(one(2), seed=2)
    answers = run_out(engine)
    assert (answers[easy].exact, answers[hard].exact, answers[free].exact) == (True, False, True)
    assert answers[hard].latency_ms <= 110.0 + 1e-6
    assert answers[hard].calls >= 4 + 5  # as late as possible
    assert np.isfinite(answers[hard].action_pred).all()
    for ticket, i in ((easy, 0), (free, 2)):  # the others are what they would have been
        np.testing.assert_allclose(
            answers[ticket].action_pred, alone(engine.policy, SamplerConfig("ddpm", 20), i), atol=1e-4
        )


def test_chunks_are_exact_again_when_calls_are_quick_again():
    """Each chunk would be late while calls take 100 ms; then they take 1 ms, which only trying shows."""
    clock = Clock({"max_chains": 1}, seconds=0.1)
    engine, exact = clock.engine, []
    for i in range(30):
        engine.submit(one(i), deadline=clock.now + 0.5)
        exact += [answer.exact for answer in run_out(engine).values()]
        if i == 5:
            clock.seconds = 0.001
    assert not any(exact[1:6])
    assert all(exact[-5:])


def test_the_earliest_deadline_begins_first_and_no_deadline_last():
    clock = Clock({"max_chains": 1})
    engine, begin = clock.engine, clock.now
    last = engine.submit(one(0))
    second = engine.submit(one(1), deadline=begin + 50.0)
    first = engine.submit(one(2), deadline=begin + 40.0)
    assert list(run_out(engine)) == [first, second, last]


def test_chains_under_way_end_with_the_policy_they_began_with():
    old, new = tiny_policy(seed=0), tiny_policy(seed=1)
    engine = Engine(old, max_chains=3, adaptive=False)
    before = [engine.submit(one(i), seed=i) for i in range(2)]
    engine.step()
    engine.swap(new)
    assert engine.policy is new
    after = [engine.submit(one(i), seed=i) for i in range(2)]
    engine.step()
    assert engine.under_way == 3  # both policies together have max_chains
    answers = run_out(engine)
    for tickets, policy in ((before, old), (after, new)):
        for i, ticket in enumerate(tickets):
            np.testing.assert_allclose(answers[ticket].action_pred, alone(policy, None, i), atol=1e-4)
    assert len(engine._lanes) == 1


def test_a_policy_of_another_shape_is_not_swapped_in():
    engine = Engine(tiny_policy())
    with pytest.raises(ValueError, match=r"has action_dim = 12 and the one in use 10"):
        engine.swap(tiny_policy(action_dim=12, action_repr="raw"))
    assert engine.policy.config.action_dim == 10


def test_requests_may_come_from_many_threads():
    policy = tiny_policy()
    engine = Engine(policy, max_chains=4, adaptive=False)
    tickets: dict[int, int] = {}

    def ask(i: int) -> None:
        tickets[i] = engine.submit(one(i), seed=i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    answers: dict[int, Finished] = {}
    while len(answers) < 12:
        answers |= {finished.ticket: finished for finished in engine.step()}
    for thread in threads:
        thread.join()
    assert sorted(tickets.values()) == list(range(12))
    for i, ticket in tickets.items():
        np.testing.assert_allclose(answers[ticket].action_pred, alone(policy, None, i), atol=1e-4)


def test_settings_that_cannot_be_are_refused():
    policy = tiny_policy()
    for options in ({"max_chains": 0}, {"finish_steps": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Engine(policy, **options)
    with pytest.raises(ValueError, match="one device"):
        Engine(policy, SamplerConfig(runtime=RuntimeConfig(devices=("cpu", "cpu"))))


def test_the_program_on_the_page_runs(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "batching.md").read_text()
    (program,) = re.findall(r"<!-- example: runs -->\n```python\n(.*?)```", page, re.DOTALL)
    exec(compile(program, "docs/batching.md", "exec"), {})
    printed = sorted(capsys.readouterr().out.splitlines())
    assert [line.split()[:3] for line in printed] == [[str(i), "(16,", "10)"] for i in range(3)]
