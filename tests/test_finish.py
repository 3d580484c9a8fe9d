"""Deadlines of a sampler call: chains that would be late are finished by DDIM, marked, and in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closed_form import gaussian, two_modes
from tiny_policy import SCHEDULER, tiny_obs, tiny_policy

from diffpolicy_spec import Deadline, Inpainting, Noise, RuntimeConfig, SamplerConfig, Schedule, bind, draw_noise
from diffpolicy_spec.chains import run
from diffpolicy_spec.deadline import Pace
from diffpolicy_spec.finish import finish
from diffpolicy_spec.networks import Networks
from diffpolicy_spec.runtime import Session

CONFIG = {"num_train_timesteps": 40, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
TARGET = two_modes(6)
SAMPLERS = {
    "ddpm": SamplerConfig("ddpm"),
    "ddim": SamplerConfig("ddim", 20),
    "paradigms": SamplerConfig("paradigms", options={"window": 8}),
    "tree": SamplerConfig("tree", options={"children": 2, "depth": 2}),
    "nearest": SamplerConfig(options={"drafter": "nearest", "window": 4}),
    "picard": SamplerConfig(options={"window": 4, "memory": 2}),
}
STEPS = 4


class SlowNetwork:
    """A target's denoiser on a clock that it moves: s for a call."""

    def __init__(self, schedule: Schedule, seconds: float = 1.0, target=TARGET) -> None:
        self.now, self.calls, self.seconds = 0.0, 0, seconds
        self._denoise = target.denoiser(schedule)

    def __call__(self, x, t, chain):
        self.now += self.seconds
        self.calls += 1
        return self._denoise(x, t, chain)

    def clock(self) -> float:
        return self.now

    def deadline(self, seconds: float, pace: Pace | None = None, steps: int = STEPS) -> Deadline:
        return Deadline(self.now + seconds, steps, self.clock, pace or Pace())


def noise_of(sampler, batch: int = 3, seed: int = 0) -> Noise:
    return draw_noise((batch, 6, 1), sampler.schedule, torch.Generator().manual_seed(seed))


def generators(batch: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


def session_for(sampler, network, batch: int = 4) -> Session:
    return Session(sampler.chains, network, sampler.schedule, (batch, 6, 1), torch.device("cpu"),
                   config=RuntimeConfig("static"))  # fmt: skip


def drawn(sampler, network, how: str, noise: Noise, deadline: Deadline | None):
    if how == "static":
        return session_for(sampler, network)(noise, generator=generators(), deadline=deadline)
    return sampler(network, noise, generator=generators(), deadline=deadline)


LINEAR = {"num_train_timesteps": 12, "beta_start": 0.01, "beta_end": 0.2, "beta_schedule": "linear"}
"""A short chain whose first state is not all noise: abar is 0.26 there."""


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_in_as_many_calls_as_steps_it_is_ddim(prediction: str, clip: bool):
    """A deadline that has passed already: diffusers' DDIM with eta = 0, from the same noise."""
    config = LINEAR | {"prediction_type": prediction, "clip_sample": clip, "clip_sample_range": 0.4}
    ddim = bind(SamplerConfig("ddim"), config | {"set_alpha_to_one": True})
    network, noise = SlowNetwork(ddim.schedule), noise_of(ddim)
    expected = ddim(network, noise.start)
    sampler = bind(SAMPLERS["nearest"], config)
    chains = sampler.chains(Networks(network, sampler.schedule, (3, 6, 1), torch.device("cpu")))
    chains.begin(noise)
    finish(chains, chains.everyone, 12)
    ours = chains.sample()
    torch.testing.assert_close(ours.x0, expected.x0, atol=1e-4, rtol=1e-4)
    assert ours.stats.calls.tolist() == ours.stats.evaluations.tolist() == [12] * 3
    assert ours.stats.finished_at.tolist() == [0, 0, 0]
    assert ours.stats.inexact.all()


@pytest.mark.parametrize(
    ("k", "calls", "steps"),
    [
        (20, 4, [20, 26, 31, 37]),  # 20 / 3.5 = 5.7 apart, the last one half as long
        (20, 1, [20]),
        (37, 4, [37, 38, 39]),
        (0, 4, [6, 16, 25, 35]),  # abar is below 0.05 before step 6
        (0, 2, [6, 29]),
        (39, 4, [39]),
    ],
)
def test_which_steps_are_called(k: int, calls: int, steps: list[int]):
    """And what the jumps between them are, written down again in double precision."""
    sampler = bind(SAMPLERS["nearest"], CONFIG | {"clip_sample": False})
    schedule, noise, called = sampler.schedule, noise_of(sampler), []
    denoise = TARGET.denoiser(schedule)

    def network(x, t, chain):
        assert len(set(t.tolist())) == 1
        called.append(schedule.timesteps.tolist().index(t[0]))
        return denoise(x, t, chain)

    chains = sampler.chains(Networks(network, schedule, (3, 6, 1), torch.device("cpu")))
    chains.begin(noise)
    chains.stand(chains.everyone, torch.full((3,), k))
    finish(chains, chains.everyone, calls)
    assert called == steps
    assert chains.calls.tolist() == [len(steps)] * 3
    abar, x = schedule.abar, noise.start.flatten(1).double()
    assert (abar[:6] < 0.05).all()
    assert abar[6] >= 0.05
    x = ((1 - abar[steps[0]]) / (1 - abar[k])).sqrt() * x
    for here, there in zip(steps, [*steps[1:], None], strict=True):
        x0 = TARGET.posterior_mean(x, abar[here])
        eps = (x - abar[here].sqrt() * x0) / (1 - abar[here]).sqrt()
        x = x0 if there is None else abar[there].sqrt() * x0 + (1 - abar[there]).sqrt() * eps
    torch.testing.assert_close(chains.sample().x0.flatten(1).double(), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["eager", "static"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_slow_network_is_in_time(name: str, how: str):
    """Calls of 1 s: whatever the deadline, it is kept as soon as finishing alone can keep it, and never overrun by
    more than what has to be tried to know how long it takes."""
    sampler = bind(SAMPLERS[name], CONFIG)
    noise, exact = noise_of(sampler), None
    for seconds in (100.0, 30.5, 13.5, 8.5, 5.5):
        network, pace = SlowNetwork(sampler.schedule), Pace()
        for key in ("opening", "round", "chain", *range(64)):
            pace.note(key, 1.0)
        sample = drawn(sampler, network, how, noise, network.deadline(seconds, pace))
        warm_up = 2 * int(network.now > seconds) if how == "static" else 0
        assert network.now <= seconds + warm_up
        if exact is None:
            exact = sample
            assert not sample.stats.inexact.any()
        late = sample.stats.inexact
        assert torch.equal(late, sample.stats.finished_at < sampler.schedule.num_steps)
        assert torch.isfinite(sample.x0).all()
        assert (sample.stats.calls <= seconds).all()
        torch.testing.assert_close(sample.x0[~late], exact.x0[~late], atol=2e-4, rtol=2e-4)
    assert late.all()


@pytest.mark.parametrize("how", ["eager", "static"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_with_time_enough_nothing_changes(name: str, how: str):
    sampler = bind(SAMPLERS[name], CONFIG)
    noise, network = noise_of(sampler), SlowNetwork(sampler.schedule)
    exact, ours = (drawn(sampler, network, how, noise, d) for d in (None, network.deadline(1e6)))
    assert torch.equal(exact.x0, ours.x0)
    assert torch.equal(exact.stats.calls, ours.stats.calls)
    assert not ours.stats.inexact.any()
    assert not exact.stats.inexact.any()


def test_chains_that_are_done_stay_exact():
    """Of a batch, only those that are under way are finished."""
    sampler = bind(SAMPLERS["nearest"], CONFIG)
    noise, exact = noise_of(sampler, 16), None
    exact = sampler(TARGET.denoiser(sampler.schedule), noise)
    first, last = int(exact.stats.calls.min()), int(exact.stats.calls.max())
    assert first < last
    for steps in range(1, 4):
        network = SlowNetwork(sampler.schedule)
        pace = Pace()
        for key in ("opening", "round", "finish"):
            pace.note(key, 1.0)
        ours = sampler(network, noise, deadline=network.deadline(first + steps, pace, steps))
        late = ours.stats.inexact
        assert network.now <= first + steps
        if late.any() and not late.all():
            break
    else:
        pytest.fail("no deadline lies between the first chain's end and the last's")
    assert torch.equal(ours.x0[~late], exact.x0[~late])
    assert (ours.stats.finished_at[~late] == 40).all()
    assert (exact.stats.calls[late] > first).all()


def test_few_steps_left_are_gone_exactly():
    """With no more steps left than finishing takes calls, going on is no later."""
    sampler = bind(SamplerConfig("ddpm", 10), CONFIG)
    network = SlowNetwork(sampler.schedule)
    sample = sampler(network, noise_of(sampler), deadline=network.deadline(-1.0, steps=10))
    assert not sample.stats.inexact.any()
    assert network.calls == 10


@pytest.mark.parametrize("k", [0, 17, 33, 38])
@pytest.mark.parametrize("name", ["ddpm", "nearest", "paradigms"])
def test_from_anywhere_it_brings_chains_near_their_end(name: str, k: int):
    """A Gaussian's chain finished from step k in many calls ends where the flow from there ends; in as many calls as
    steps are left it calls each step once."""
    target = gaussian(6)
    sampler = bind(SAMPLERS[name], CONFIG | {"clip_sample": False})
    noise = noise_of(sampler)

    def finished(steps: int):
        network = SlowNetwork(sampler.schedule, target=target)
        chains = sampler.chains(Networks(network, sampler.schedule, (3, 6, 1), torch.device("cpu")))
        chains.begin(noise, generator=generators())
        if chains.lockstep:
            chains.halt(k)
        chains.stand(chains.everyone, torch.full((3,), k))
        finish(chains, chains.everyone, steps)
        assert network.calls == min(steps, 40 - max(k, 6))
        assert chains.rows.tolist() == [0, 0, 0]
        return chains.sample()

    many, few = finished(40), finished(6)
    # Of N(mu, S) the flow keeps (x / sqrt(abar) - mu) (S + (1 - abar) / abar)^-1/2 as it is, along each axis of S.
    (mu,), (S,) = target.means, target.covs
    values, vectors = torch.linalg.eigh(S)
    abar = sampler.schedule.abar[k]
    scale = (values / (abar * values + 1 - abar)).sqrt()
    moved = (noise.start.flatten(1).double() - abar.sqrt() * mu) @ vectors
    flow = mu + (moved * scale) @ vectors.T
    assert (many.x0.flatten(1) - flow).abs().max() < 0.1
    assert (few.x0.flatten(1) - flow).abs().max() < 0.25
    assert few.stats.finished_at.tolist() == [k] * 3


def test_only_which_are_asked_for_are_finished():
    sampler = bind(SAMPLERS["nearest"], CONFIG)
    chains = sampler.chains(Networks(TARGET.denoiser(sampler.schedule), sampler.schedule, (3, 6, 1),
                                     torch.device("cpu")))  # fmt: skip
    noise = noise_of(sampler)
    chains.begin(noise)
    finish(chains, torch.tensor([1]), STEPS)
    assert chains.k.tolist() == [0, 40, 0]
    sample = run(chains)
    exact = sampler(TARGET.denoiser(sampler.schedule), noise)
    torch.testing.assert_close(sample.x0[[0, 2]], exact.x0[[0, 2]], atol=1e-5, rtol=1e-5)
    assert sample.stats.inexact.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="at least 1"):
        finish(chains, chains.everyone, 0)
    with pytest.raises(ValueError, match="finish_steps"):
        Deadline(0.0, 0)


@pytest.mark.parametrize("how", ["eager", "static"])
def test_known_coordinates_stay(how: str):
    mask = torch.zeros(3, 6, 1, dtype=torch.bool)
    mask[:, :2] = True
    inpaint = Inpainting(mask, torch.full((3, 6, 1), 0.7))
    sampler = bind(SAMPLERS["picard"], CONFIG)
    network, noise = SlowNetwork(sampler.schedule), noise_of(sampler)
    if how == "eager":
        sample = sampler(network, noise, inpaint=inpaint, deadline=network.deadline(-1.0))
    else:
        hidden = replace(noise, start=inpaint.hide(noise.start), steps=inpaint.hide(noise.steps))
        session = Session(sampler.chains, network, sampler.schedule, (3, 6, 1), torch.device("cpu"), inpaint=inpaint,
                          config=RuntimeConfig("static"))  # fmt: skip
        sample = session(hidden, inpaint=inpaint, deadline=network.deadline(-1.0))
    assert sample.stats.inexact.all()
    assert (sample.x0[:, :2] == 0.7).all()
    assert not (sample.x0[:, 2:] == 0.7).any()


def test_the_next_chunk_of_a_session_is_exact_again():
    sampler = bind(SAMPLERS["picard"], CONFIG)
    network, noise = SlowNetwork(sampler.schedule), noise_of(sampler)
    session = session_for(sampler, network)
    first = session(noise, generator=generators())
    assert session(noise, generator=generators(), deadline=network.deadline(-1.0)).stats.inexact.all()
    again = session(noise, generator=generators())
    assert torch.equal(first.x0, again.x0)
    assert not again.stats.inexact.any()


def test_pace_forgets_what_was_slow():
    """After a slow spell, chunks that are finished at once try rounds again."""
    sampler = bind(SAMPLERS["picard"], CONFIG)
    network, pace, noise = SlowNetwork(sampler.schedule), Pace(), noise_of(sampler)
    deadline = 60.0
    assert not sampler(network, noise, deadline=network.deadline(deadline, pace)).stats.inexact.any()
    network.seconds = 20.0
    for _ in range(20):
        begun = network.now
        assert sampler(network, noise, deadline=network.deadline(deadline, pace)).stats.inexact.all()
        slow = network.now - begun
    assert slow <= 100  # nothing but finishing, or with it the round that is tried now and then
    network.seconds = 1.0
    after = [bool(sampler(network, noise, deadline=network.deadline(deadline, pace)).stats.inexact.any())
             for _ in range(30)]  # fmt: skip
    assert not any(after[-5:])


def test_a_network_that_returns_nan_is_told_while_finishing():
    sampler = bind(SAMPLERS["picard"], CONFIG)
    with pytest.raises(FloatingPointError, match="timestep 33"):
        sampler(lambda x, t, chain: torch.full_like(x, torch.nan), noise_of(sampler), deadline=Deadline(-1.0))


@pytest.mark.parametrize("mode", ["eager", "static"])
def test_policies_take_a_deadline(mode: str):
    policy = tiny_policy(scheduler=SCHEDULER).use(RuntimeConfig(mode))
    obs, noise = tiny_obs(2), draw_noise((2, 16, 10), policy.bind().schedule, torch.Generator().manual_seed(0))
    exact, in_time, late = (
        policy.predict_action(obs, noise=noise, deadline=d, finish_steps=3) for d in (None, float("inf"), 0.0)
    )
    assert torch.equal(exact.action_pred, in_time.action_pred)
    assert in_time.sample.stats.inexact.tolist() == [False, False]
    assert late.sample.stats.inexact.tolist() == [True, True]
    assert late.sample.stats.calls.tolist() == [3, 3]
    assert torch.isfinite(late.action).all()
    with pytest.raises(ValueError, match="finish_steps"):
        policy.predict_action(obs, deadline=0.0, finish_steps=0)
