"""Deliberate effects are what they are called, and the power that is stated is the battery's."""

import pytest
import torch
from test_certify_battery import CONDITIONS, chunks

from diffpolicy_spec.certify import measure_false_alarms, measure_power
from diffpolicy_spec.certify.modes import find_modes
from diffpolicy_spec.certify.power import EFFECTS, GRID


def test_effects_do_what_they_are_called():
    x = chunks(400, 0)
    shift, scale, reweight = (falsify for falsify, _ in EFFECTS.values())
    assert torch.allclose((shift(x, 0.3) - x).mean(1), 0.3 * x.std(1), atol=1e-5)
    assert torch.allclose(scale(x, 0.2).std(1), 1.2 * x.std(1), rtol=1e-4)
    assert torch.allclose(scale(x, 0.2).mean(1), x.mean(1), atol=1e-5)
    moved = reweight(x, 0.1)
    for before, after in zip(x, moved, strict=True):
        assert int((before != after).flatten(1).any(1).sum()) == 40
        mean_before, mean_after = before.mean(), after.mean()
        assert float(mean_after - mean_before) == pytest.approx(0.1, abs=0.03)  # modes are 1 apart, the upper is rarer
        assert len(set(find_modes(after.flatten(1)).tolist())) == 2
    assert torch.equal(reweight(torch.ones(1, 20, 4, 2), 0.1), torch.ones(1, 20, 4, 2))


def test_power_grows_with_the_number_of_chunks():
    few = measure_power(chunks(60, 1), CONDITIONS, alpha=0.01, splits=10)
    many = measure_power(chunks(600, 1), CONDITIONS, alpha=0.01, splits=10)
    assert [p.effect for p in few] == list(EFFECTS)
    for a, b in zip(few, many, strict=True):
        assert b.size is not None
        assert b.size <= (a.size if a.size is not None else GRID[-1])
        for size, seen, made in b.tried:
            assert 0 <= seen <= made <= 10
            assert size in GRID
        hit = next((seen, made) for size, seen, made in b.tried if size == b.size)
        assert hit[1] == 10
        assert hit[0] >= 9
    assert sum(b.size < (a.size or 1) for a, b in zip(few, many, strict=True)) >= 2
    assert "of its standard deviation" in many[0].said
    assert f"{1 + many[1].size:g}" in many[1].said


def test_what_is_not_seen_is_not_claimed():
    """Sixteen chunks a side see no change of mode weights on this grid."""
    power = measure_power(chunks(16, 3), CONDITIONS, alpha=1e-3, splits=5)[2]
    assert power.size is None
    assert power.said.startswith("not even 0.5 of all chunks")


def test_halves_of_one_sample_are_not_different():
    assert measure_false_alarms(chunks(200, 4), CONDITIONS, alpha=1e-3, splits=20) == 0
