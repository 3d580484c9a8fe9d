"""Limits normalisation and its state dict."""

import numpy as np
import pytest
import torch

from diffpolicy_spec.policies import LinearNormalizer, NormalizationError
from diffpolicy_spec.policies.normalizer import fit_limits, identity_columns


def test_limits():
    data = np.random.default_rng(0).uniform([-3, 5, 0], [1, 5.5, 1000], size=(40, 7, 3))
    fields = fit_limits(data)
    flat = torch.as_tensor(data, dtype=torch.float32).reshape(-1, 3)
    out = flat * fields["scale"] + fields["offset"]
    torch.testing.assert_close(out.amin(0), -torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.amax(0), torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(fields["input_stats.min"], flat.amin(0))
    torch.testing.assert_close(fields["input_stats.mean"], flat.mean(0))
    torch.testing.assert_close(fields["input_stats.std"], flat.std(0))


def test_constant_dimension_does_not_blow_up():
    data = np.stack([np.linspace(0, 1, 50), np.full(50, 0.7), 3 + np.linspace(0, 9e-5, 50)], axis=1)
    fields = fit_limits(data)
    assert fields["scale"].tolist() == [2.0, 1.0, 1.0]
    out = torch.tensor([0.5, 0.71, 3.5]) * fields["scale"] + fields["offset"]
    torch.testing.assert_close(out, torch.tensor([0.0, 0.01, 0.5]), rtol=0, atol=1e-5)


def test_one_row_is_constant():
    fields = fit_limits(np.array([[1.0, 2.0]]))
    assert torch.isfinite(torch.stack(list(fields.values()))).all()


def test_identity_columns():
    fields = identity_columns(fit_limits(np.array([[0.0, 0.0, 0.0], [4.0, 0.5, 0.5]])), [1])
    assert fields["scale"].tolist() == [0.5, 1.0, 4.0]
    assert fields["offset"].tolist() == [-1.0, 0.0, -1.0]


def test_there_and_back():
    normalizer = LinearNormalizer({"a.b": fit_limits(np.random.default_rng(1).normal(size=(30, 4)))})
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(normalizer.unnormalize("a.b", normalizer.normalize("a.b", x)), x)
    state = normalizer.state_dict()
    assert {"params_dict.a.b.scale", "params_dict.a.b.input_stats.max"} <= set(state)
    again = LinearNormalizer.from_state_dict(state)
    assert torch.equal(again.normalize("a.b", x), normalizer.normalize("a.b", x))
    assert set(again.state_dict()) == set(state)


def test_missing_statistics_are_named():
    normalizer = LinearNormalizer({"object": fit_limits(np.eye(3))})
    with pytest.raises(NormalizationError, match=r"no normalisation statistics for 'action' \(there are: object\)"):
        normalizer.normalize("action", torch.zeros(1, 3))
    with pytest.raises(NormalizationError, match="'object' has 3 dimensions, expected 10"):
        normalizer.check({"object": 10})
    with pytest.raises(NormalizationError, match="'x' lacks offset"):
        LinearNormalizer({"x": {"scale": torch.ones(2)}})


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_unusable_statistics(scale):
    with pytest.raises(NormalizationError, match="'x': scale must be finite and not zero"):
        LinearNormalizer({"x": {"scale": torch.tensor([1.0, scale]), "offset": torch.zeros(2)}})
    with pytest.raises(NormalizationError, match=r"'x': scale \(2,\), offset \(3,\)"):
        LinearNormalizer({"x": {"scale": torch.ones(2), "offset": torch.zeros(3)}})


def test_strange_names():
    with pytest.raises(NormalizationError, match=r"'params_dict\.x\.mean'"):
        LinearNormalizer.from_state_dict({"params_dict.x.mean": torch.zeros(2)})


@pytest.mark.parametrize(("data", "message"), [(np.zeros((0, 3)), "at least one row"), ([[1.0, np.nan]], "NaN")])
def test_data_it_cannot_use(data, message):
    with pytest.raises(NormalizationError, match=message):
        fit_limits(np.asarray(data))
