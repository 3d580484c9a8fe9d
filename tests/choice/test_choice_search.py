"""The search on small policies whose network costs what the test says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from known_policy import STEPS, known_policy, moments
from tiny_policy import tiny_obs, tiny_policy

from diffpolicy_spec import Gains, SamplerConfig, ScheduleError
from diffpolicy_spec.choice.candidates import FAMILIES, Family, available, windows_near
from diffpolicy_spec.choice.choose import choose, finalists_of, most_chains, pick
from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.runtime import RuntimeConfig

ONE = RuntimeConfig(threads=1)
SOME = tuple(family for family in FAMILIES if family.name in ("nearest", "picard"))


def search(policy, **changes):
    few = {"num_inference_steps": STEPS, "families": SOME, "timed": 4, "probes": 1, "tried": (ONE,)}
    return choose(policy, moments(), **few | changes)


@pytest.mark.usefixtures("known_time")
def test_where_rows_are_free_speculation_is_chosen_and_what_it_expects_is_true():
    policy = known_policy(call=0.01)
    choice = search(policy)
    assert choice.method == "speculative"
    assert choice.name in ("nearest", "picard")
    assert choice.calls < 8
    assert choice.latency_ms < choice.sequential_ms / 1.5
    assert choice.sequential_ms == pytest.approx(12 * 10, rel=0.01)
    # What it says agrees with a run of its own.
    bound = policy.bind(replace(choice.config, most_chains=None))
    stats = policy.predict_action(tiny_obs(6), sampler=bound, generator=torch.Generator().manual_seed(3)).sample.stats
    assert stats.calls.double().mean() == pytest.approx(choice.calls, abs=2)
    by_size = {row["window"]: row for row in choice.candidates if row["name"] == choice.name}
    assert by_size["12"]["calls"] <= by_size["8"]["calls"] + 1
    assert any(row["window"].startswith("by step") for row in choice.candidates)
    finalists = [row for row in choice.candidates if "measured_ms" in row]
    assert len(finalists) == 5  # four and the sequential sampler
    assert min(row["measured_ms"] for row in finalists) == choice.latency_ms
    measured = next(row for row in finalists if row["options"] == choice.options)
    assert measured["predicted_ms"] == pytest.approx(measured["measured_ms"], rel=0.5)


@pytest.mark.usefixtures("known_time")
def test_where_every_row_costs_as_much_as_a_call_the_sequential_sampler_is_kept():
    """Speculation evaluates at least as many rows: it cannot win, whatever it accepts."""
    policy = known_policy(row=0.003)
    choice = search(policy)
    assert choice.method == "sequential"
    assert choice.config == SamplerConfig("ddpm", 12, runtime=ONE)
    assert choice.latency_ms == choice.sequential_ms
    assert (choice.calls, choice.rows) == (12, 12)


def test_where_the_overhead_is_all_there_is_the_sequential_sampler_is_kept():
    """A chain of two steps, hard to draft: a call is next to nothing beside a round's bookkeeping."""
    policy = known_policy(width=2.0)
    choice = search(policy, num_inference_steps=2, timed=12)
    assert choice.method == "sequential"


def test_families_without_what_they_need_are_left_out():
    names = {family.name for family in available(FAMILIES, set())}
    assert "picard + secant" in names
    assert not names & {"picard + secant + gain", "draft model", "picard + corrector"}
    assert {family.name for family in available(FAMILIES, {"gains", "draft"})} == {f.name for f in FAMILIES}
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_can_be_configured(family):
    sizes = family.sizes(100)
    for size in sizes:
        SamplerConfig(family.method, options={**family.options, **size})
    if family.method == "speculative":
        assert [size["window"] for size in sizes] == [8, 16, 32, 100]
        assert [size["window"] for size in family.sizes(16)] == [8, 16]


def test_the_fine_search_is_around_the_best():
    assert windows_near(16, 100) == [8, 12, 16, 24, 32]
    assert windows_near(16, 20) == [8, 12, 16]
    assert windows_near(100, 100) == [64, 96]


def test_all_families_that_need_nothing_run():
    choice = search(tiny_policy(), families=FAMILIES, timed=2, num_inference_steps=6)
    named = {row["name"] for row in choice.candidates}
    assert named == {family.name for family in available(FAMILIES, set())} | {"sequential"}


def test_gains_are_tried_for_the_chain_they_were_fitted_for():
    policy = known_policy()
    timesteps = policy.bind(SamplerConfig("ddpm", STEPS)).schedule.timesteps
    policy.speculation = Gains(torch.zeros(STEPS, 160, 160), timesteps).state_dict()
    families = tuple(family for family in FAMILIES if family.needs == ("gains",))
    tried = {row["name"] for row in search(policy, families=families, timed=2).candidates}
    assert tried == {family.name for family in families} | {"sequential"}
    other = search(policy, families=families, timed=2, num_inference_steps=5)
    assert [row["name"] for row in other.candidates] == ["sequential"]
    assert other.method == "sequential"


def test_the_same_seed_counts_the_same_rounds():
    twice = [search(known_policy(), families=SOME[:1], timed=2).candidates for _ in range(2)]
    counted = [{row["window"]: (row["calls"], row["rows"]) for row in rows} for rows in twice]
    both = {w for w in counted[0].keys() & counted[1].keys() if not w.startswith("by step")}  # those depend on times
    assert {"1", "8"} <= both
    assert all(counted[0][window] == counted[1][window] for window in both)


def test_finalists_are_the_quickest_and_both_kinds_of_windows():
    found = [SimpleNamespace(seconds=i, trial=SimpleNamespace(planned=i == 3)) for i in range(4)]
    assert finalists_of(found[::-1], 2) == [found[0], found[3]]
    assert finalists_of(found, 4) == found
    assert finalists_of(found, 1) == found[:1]
    assert finalists_of(found[:3], 2) == found[:2]


def test_nothing_slower_than_the_sequential_sampler_is_picked():
    rng = np.random.default_rng(0)
    reference = 1 + 0.1 * rng.random(10)
    assert pick(reference, [reference * 0.9, reference * 0.5, reference * 1.5]) == 1
    assert pick(reference, [reference * 1.01, reference * 2]) is None
    assert pick(reference, [reference]) is None
    assert pick(reference, []) is None
    noisy = reference + rng.normal(size=10) * 0.5
    assert pick(reference, [noisy - noisy.mean() + reference.mean() - 0.01]) is None  # quicker by chance


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(ScheduleError, match="deterministic"):
        search(known_policy(), eta=0.0)
    with pytest.raises(ValueError, match="timed of at least 2"):
        search(known_policy(), timed=1)
    with pytest.raises(ValueError, match="window must be at least 1"):
        search(known_policy(), families=(Family("bad", {"drafter": "nearest", "window": 0}, shapes=({"window": 0},)),))


def test_large_batches_go_step_by_step_where_rows_are_dear():
    dear, free = CallCost((1, 10, 100), (2.0, 2.9, 11.9)), CallCost((1, 10, 100), (2.0, 2.0, 2.0))
    assert most_chains(free, 5, 200, 100) == 1024
    few = most_chains(dear, 5, 200, 100)
    assert 1 < few < 64
    assert 5 * dear(few * 40) <= 0.9 * 100 * dear(few)
    assert 5 * dear(2 * few * 40) > 0.9 * 100 * dear(2 * few)


def test_a_batch_beyond_the_limit_is_drawn_step_by_step():
    policy = tiny_policy()
    sampler = policy.bind(SamplerConfig(num_inference_steps=10, most_chains=2))
    calls = [int(policy.predict_action(tiny_obs(n), sampler=sampler).sample.stats.drafted.sum()) for n in (2, 3)]
    assert calls[0] > 0 == calls[1]
