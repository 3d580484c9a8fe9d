"""Draft trees: shapes, counts, the network's rows, what they gain and refuse. Their law: test_exactness*.py."""

from __future__ import annotations

import pytest
import torch
from closed_form import two_modes

from diffpolicy_spec import Nearest, Schedule, ScheduleError, draw_noise, sample_speculative
from diffpolicy_spec.trees import MAX_NODES, check_tree, sample_tree

CONFIG = {"num_train_timesteps": 30, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
SCHEDULE = Schedule.from_diffusers(CONFIG)
TARGET = two_modes(4)
DENOISE = TARGET.denoiser(SCHEDULE)


def noise_of(batch: int, seed: int = 0):
    return draw_noise((batch, 4, 1), SCHEDULE, torch.Generator().manual_seed(seed))


def mean_calls(sampler, **options) -> float:
    g = torch.Generator().manual_seed(1)
    return float(sampler(DENOISE, SCHEDULE, noise_of(300), generator=g, **options).stats.calls.double().mean())


def test_children_of_each_level():
    assert check_tree(3, 2) == [3, 3]
    assert check_tree([4, 2, 1], 3) == [4, 2, 1]
    assert check_tree() == [2, 2, 2, 2]


@pytest.mark.parametrize(("options", "message"), [
    ({"children": 0}, "positive number of children"), ({"children": -1}, "positive number of children"),
    ({"depth": 0}, "positive number of children"), ({"children": [2, 2], "depth": 3}, "3 of them for depth 3"),
    ({"children": [2, 1.5], "depth": 2}, "positive number of children"),
    ({"children": 8, "depth": 8}, f"too large \\(at most {MAX_NODES}\\)"),
])  # fmt: skip
def test_trees_that_cannot_be_grown_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_tree(**options)
    with pytest.raises(ValueError, match=message):
        sample_tree(DENOISE, SCHEDULE, noise_of(1), **options)


def test_a_deterministic_chain_is_refused():
    with pytest.raises(ScheduleError, match="eta = 0"):
        sample_tree(DENOISE, Schedule.from_diffusers(CONFIG, 10, eta=0.0), torch.randn(1, 4, 1))


def test_the_network_is_asked_once_a_round_for_every_node_before_the_end():
    """3 + 1 levels of 2 children: 15 nodes; near the end those beyond the last step are left out."""
    rows, first = [], []

    def denoise(x, t, chain):
        rows.append(len(x))
        first.append(SCHEDULE.num_steps - 1 - int(t.max()))
        return DENOISE(x, t, chain)

    stats = sample_tree(denoise, SCHEDULE, noise_of(1), children=2, depth=3).stats
    assert len(rows) == int(stats.calls)
    assert rows == [2 ** (min(3, SCHEDULE.num_steps - 1 - k) + 1) - 1 for k in first]
    assert sum(rows) == int(stats.evaluations)


def test_a_wide_tree_needs_fewer_calls_than_a_line_of_its_depth():
    line, two, four = (mean_calls(sample_tree, children=n, depth=3) for n in (1, 2, 4))
    assert four < two - 0.1 < line - 0.2


def test_a_line_costs_what_nearest_drafts_cost():
    """One child a node, 8 levels: the same drafts as `Nearest` with 9 rows, redrawn instead of kept."""
    assert mean_calls(sample_tree, children=1, depth=8) == pytest.approx(
        mean_calls(sample_speculative, drafter=Nearest(), window=9), abs=0.5
    )


def test_drafts_that_are_right_are_never_rejected():
    point = torch.full((4, 1), 0.4)
    stats = sample_tree(lambda x, t, c: point.expand_as(x), SCHEDULE, noise_of(20), children=2, depth=4).stats
    assert int(stats.rejected.max()) <= 1  # the first round drafts 0
    assert int(stats.calls.max()) <= 1 + -(-SCHEDULE.num_steps // 5)


def test_generators_must_be_one_or_one_for_each_chain():
    start = torch.randn(3, 4, 1)
    with pytest.raises(ValueError, match="one generator per chain"):
        sample_tree(DENOISE, SCHEDULE, start, generator=[torch.Generator()])
    runs = [sample_tree(DENOISE, SCHEDULE, start, generator=torch.Generator().manual_seed(3)).x0 for _ in range(2)]
    assert torch.equal(*runs)
