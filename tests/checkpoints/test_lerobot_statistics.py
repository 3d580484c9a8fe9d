"""LeRobot's ways of normalising as one linear map."""

from __future__ import annotations

import pytest
import torch

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.lerobot.statistics import Feature, Statistics, normalization
from diffpolicy_spec.policies.normalizer import LinearNormalizer


def statistics(mode, **tensors):
    values = {name: torch.tensor(value) for name, value in tensors.items()}
    return Statistics("here", {"STATE": mode, "ACTION": mode}, {"x": values})


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")]
)
def test_bounds(mode, low, high):
    """2 (x - low) / (high - low) - 1."""
    step = statistics(mode, **{low: [1.0, -4.0], high: [3.0, 0.0]})
    params, notes = normalization(step, step, {"x": Feature("STATE", (2,))})
    found = LinearNormalizer(params).normalize("x", torch.tensor([[1.0, -2.0], [2.5, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0], [0.5, 1.0]]))
    assert notes == ()


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD"])
def test_dimensions_that_never_varied(mode):
    """At the value they had they are what LeRobot makes of them, -1 or 0; what deviates is told of."""
    value = [0.0, 0.7]
    names = ("min", "max") if mode == "MIN_MAX" else ("mean", "std")
    step = statistics(mode, **{names[0]: value, names[1]: value if mode == "MIN_MAX" else [0.0, 0.0]})
    expected = torch.full((2,), -1.0 if mode == "MIN_MAX" else 0.0)
    params, notes = normalization(step, step, {"x": Feature("STATE", (2,))})
    found = LinearNormalizer(params).normalize("x", torch.tensor(value))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert len(notes) == 1
    assert "[1]" in notes[0]
    params, notes = normalization(step, step, {"x": Feature("ACTION", (2,))})
    for y in (-1.0, 0.3):
        found = LinearNormalizer(params).unnormalize("x", torch.full((2,), y))
        torch.testing.assert_close(found, torch.tensor(value), atol=1e-6, rtol=0)
    assert notes == ()


@pytest.mark.parametrize(
    ("mode", "tensors"),
    [
        ("MIN_MAX", {"min": [1.0], "max": [0.0]}),
        ("MEAN_STD", {"mean": [1.0], "std": [-1.0]}),
        ("LOGARITHM", {}),
        ("MIN_MAX", {"min": [1], "max": [2]}),
    ],
)
def test_statistics_that_make_no_sense(mode, tensors):
    step = statistics(mode, **tensors)
    with pytest.raises(CheckpointError, match="here"):
        normalization(step, step, {"x": Feature("STATE", (1,))})
