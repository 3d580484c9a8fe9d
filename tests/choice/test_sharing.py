"""Rows of shared calls: learned from rounds, narrower the more chains there are."""

from __future__ import annotations

import numpy as np
import pytest

from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.choice.sharing import Sharing
from diffpolicy_spec.choice.windows import expected_seconds

K = 40
# A call costs 4 and from 8 rows on 0.5 a row.
CALL = CallCost((1, 8, 1000), (4.0, 4.0, 500.0))
CHEAP = CallCost((1, 8, 1000), (4.0, 4.2, 54.0))  # 0.05 a row


def taught(call: CallCost = CALL, accept: float = 0.9, rounds: int = 400, credit: float = 1.0) -> Sharing:
    """By rounds of 10 rows whose tests pass with this probability."""
    sharing, rng = Sharing(K, call, credit=credit), np.random.default_rng(0)
    for _ in range(rounds):
        at = rng.integers(0, K - 12, size=4)
        passed = (rng.random((4, 9)) < accept).cumprod(axis=1).sum(axis=1)
        sharing.saw(at.tolist(), [10] * 4, (passed + 1).tolist())
    return sharing


def test_nothing_is_shared_out_before_anything_was_seen_and_for_a_chain_alone():
    sharing = Sharing(K, CALL)
    assert sharing([0, 5], [32, 16]) == [32, 16]
    sharing = taught()
    assert sharing([0], [32]) == [32]
    assert max(sharing([0] * 8, [32] * 8)) < 32


def test_more_chains_have_fewer_rows_each():
    sharing = taught()
    means = [float(sharing.windows(b)[:25].mean()) for b in (1, 2, 4, 8)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 2


def test_windows_are_those_of_the_least_time_of_all_together():
    """8 chains: each pays an eighth of the call. No constant window is better in the same renewal."""
    sharing, b = taught(), 8
    accept = np.full((K, K), 0.9)
    cost = CALL(b * np.arange(1, K + 1)) / b
    planned = expected_seconds(sharing.windows(b), accept, cost)[0]
    constant = [expected_seconds(np.full(K, w), accept, cost)[0] for w in range(1, K + 1)]
    assert planned <= 1.03 * min(constant)  # acceptance is an estimate
    assert planned < 0.9 * constant[31]


def test_windows_never_pass_what_the_sampler_allows_and_the_end_of_the_chain():
    sharing = taught()
    rows = sharing([0, 10, K - 1], [3, 32, 1])
    assert all(1 <= n <= m for n, m in zip(rows, [3, 32, 1], strict=True))


def test_what_is_seldom_accepted_is_not_drafted_far():
    assert taught(CHEAP, 0.5).windows(4)[:25].max() < taught(CHEAP, 0.97).windows(4)[:25].min()


def test_it_forgets():
    """A policy is swapped: what was accepted long ago counts for little."""
    sharing, rng = taught(CHEAP, 0.97, rounds=800), np.random.default_rng(1)
    wide = sharing.windows(4)[:25].mean()
    for _ in range(5 * 512):
        at = rng.integers(0, K - 12, size=4)
        sharing.saw(at.tolist(), [10] * 4, [1] * 4)
    assert sharing.windows(4)[:25].mean() < 0.5 * wide


def test_what_stands_beside_a_call_is_learned_and_makes_windows_wider():
    sharing = taught()
    narrow = sharing.windows(4)[:25].mean()
    for rows in (20, 40, 60) * 20:
        sharing.took(rows, float(CALL(rows)) + 30.0)
    sharing.took(40, 1e6)  # the machine did something else
    assert sharing.seconds(40) == pytest.approx(float(CALL(40)) + 30.0, rel=0.1)
    for _ in range(600):  # planned anew by and by
        sharing.saw([0], [10], [5])
    assert sharing.windows(4)[:25].mean() > 1.5 * narrow
