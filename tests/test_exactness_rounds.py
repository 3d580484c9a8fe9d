"""One round in isolation: whatever a verifier commits, the noises of the target's steps are independent and N(0, 1).

A whole chain forgets small slips; here nothing does. With 100,000 rounds a KS distance of 0.0085 is seen.
"""

from __future__ import annotations

import math

import pytest
import torch
from closed_form import ALPHA
from scipy import stats
from torch import Tensor
from windows import window_at
from wrong_parts import (
    accepts_too_often,
    as_if_p_were_1,
    every_sibling_against_the_whole_target,
    from_the_wrong_side,
    mirrored,
    one_uniform_for_all_siblings,
    reflects_fresh_noise_the_wrong_way,
    the_best_sibling_first,
    uncapped,
    without_its_distance,
)

from diffpolicy_spec import Schedule
from diffpolicy_spec.coupling import residual_step
from diffpolicy_spec.trees import _accept
from diffpolicy_spec.verification import verify_block, verify_steps
from diffpolicy_spec.window import Draft

ROUNDS, BATCH, ROWS, D = 100_000, 10_000, 4, 2
SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 12, "prediction_type": "sample"})


def assert_standard(z: Tensor) -> None:
    """z: (n, k) independent N(0, 1): KS of each, of sums and differences of neighbours, and of the squares' sum."""
    k = z.shape[1]
    z = z.double()
    views = {f"{i}": z[:, i] for i in range(k)}
    for i in range(k):
        for j in range(max(0, i - 2), i):
            views |= {f"{i} + {j}": (z[:, i] + z[:, j]) / 2**0.5, f"{i} - {j}": (z[:, i] - z[:, j]) / 2**0.5}
    laws = {name: (view, stats.norm.cdf) for name, view in views.items()}
    laws["squares"] = (z.square().sum(1), stats.chi2(k).cdf)
    for name, (view, cdf) in laws.items():
        result = stats.kstest(view.numpy(), cdf, method="asymp")
        assert result.pvalue > ALPHA, f"{name}: KS distance {result.statistic:.4f}, p = {result.pvalue:.1e}"


def implied_noises(verifier) -> Tensor:
    """(ROUNDS, ROWS * D)."""
    return torch.cat([_implied_noises(verifier, BATCH, seed) for seed in range(ROUNDS // BATCH)])


def _implied_noises(verifier, n: int, seed: int) -> Tensor:
    """(n, ROWS * D) noises of the target's steps over one window of ROWS rows; steps not committed: fresh ones.

    v of row i depends on the drafted path up to it, as a network's does.
    """
    g = torch.Generator().manual_seed(seed)
    tables = SCHEDULE.on("cpu")
    chain = torch.arange(n)
    window = window_at([3] * n, [ROWS] * n, SCHEDULE.num_steps)
    xi, u = torch.randn(n, ROWS, D, generator=g), torch.rand(n, ROWS, generator=g)
    v, path = torch.zeros(n, ROWS, D), torch.zeros(n, D)
    for i in range(ROWS):
        v[:, i] = torch.tensor([0.9, 0.3]) + 0.7 * torch.sin(path)
        path = path + v[:, i] + xi[:, i]
    shift = tables.shift[window.steps].unsqueeze(-1)
    m, still = -v / shift, torch.zeros(n, ROWS, D)  # the draft's m is 0
    outcome = verifier(tables, window, Draft(m=still, x=still), m, xi, u)
    a = outcome.accepted
    k = window.steps[chain, a]
    last = (outcome.x - tables.A[k, None] * m[chain, a]) / tables.sigma[k, None]
    row = torch.arange(ROWS)
    z = torch.where((row < a[:, None]).unsqueeze(-1), v + xi, torch.randn(xi.shape, generator=g))
    z[chain, a] = last
    return z.flatten(1)


@pytest.mark.parametrize("verifier", [verify_steps, verify_block])
def test_a_round_of_a_verifier_leaves_independent_standard_noises(verifier):
    assert_standard(implied_noises(verifier))


def test_blocks_commit_more_than_steps():
    """On the same draws: the block rule is at least as good, and here it is better."""
    lengths: dict = {}

    def counting(verifier):
        def run(*args):
            outcome = verifier(*args)
            lengths[verifier] = lengths.get(verifier, 0.0) + float(outcome.accepted.double().sum()) / ROUNDS
            return outcome

        return run

    for verifier in (verify_steps, verify_block):
        implied_noises(counting(verifier))
    error = 4 * ROWS / math.sqrt(ROUNDS)
    assert lengths[verify_block] > lengths[verify_steps] + error


@pytest.mark.parametrize(("part", "wrong"), [
    ("accept_reflection", accepts_too_often), ("reflect", reflects_fresh_noise_the_wrong_way),
])  # fmt: skip
def test_a_wrong_reflection_coupling_is_caught(part, wrong, monkeypatch):
    monkeypatch.setattr(f"diffpolicy_spec.verification.{part}", wrong)
    with pytest.raises(AssertionError, match="KS distance"):
        assert_standard(implied_noises(verify_steps))


@pytest.mark.parametrize(("part", "wrong"), [
    ("residual_step", from_the_wrong_side), ("residual_step", as_if_p_were_1), ("residual_step", mirrored),
    ("residual_mass", without_its_distance), (None, uncapped),
])  # fmt: skip
def test_a_wrong_block_is_caught(part, wrong, monkeypatch):
    if part:
        monkeypatch.setattr(f"diffpolicy_spec.verification.{part}", wrong)
    with pytest.raises(AssertionError, match="KS distance"):
        assert_standard(implied_noises(verify_block if part else wrong))


def step_of_a_tree(children: int, distance: float, accept=_accept, residual=residual_step) -> tuple[Tensor, float]:
    """The target's noises (ROUNDS, D) of one step with so many siblings, and the share of rejections."""
    parts = [_step(children, distance, accept, residual, BATCH, seed) for seed in range(ROUNDS // BATCH)]
    z, rejected = (torch.cat(part) for part in zip(*parts, strict=True))
    return z, float(rejected.double().mean())


def _step(children: int, distance: float, accept, residual, n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    v = distance * torch.nn.functional.normalize(torch.randn(n, D, generator=g), dim=1)
    xi, u = torch.randn(n, children, D, generator=g), torch.rand(n, children, generator=g)
    kept, log_p = accept(v, xi, u)
    first, none = xi[torch.arange(n), kept.long().argmax(dim=1)], ~kept.any(1, keepdim=True)
    z = torch.where(none, residual(v, xi[:, 0], log_p, torch.rand(n, generator=g)), v + first)
    e = v / v.norm(dim=1, keepdim=True)  # in the frame of v: along it and across it
    across = torch.stack([-e[:, 1], e[:, 0]], dim=1)
    return torch.stack([(z * e).sum(1), (z * across).sum(1)], dim=1), none


@pytest.mark.parametrize("distance", [1e-3, 0.3, 1.5, 6.0])
@pytest.mark.parametrize("children", [1, 2, 5])
def test_a_step_of_a_tree_leaves_standard_noise(children: int, distance: float):
    assert_standard(step_of_a_tree(children, distance)[0])


def test_more_children_are_rejected_less_often():
    """One child: TV = 2 Phi(d / 2) - 1, the least there is; more: less."""
    rejected = [step_of_a_tree(n, 1.5)[1] for n in (1, 2, 5)]
    assert rejected[0] == pytest.approx(2 * stats.norm.cdf(0.75) - 1, abs=0.005)
    assert rejected[0] > rejected[1] + 0.05 > rejected[2] + 0.1


@pytest.mark.parametrize("wrong", [
    one_uniform_for_all_siblings, every_sibling_against_the_whole_target, the_best_sibling_first,
])  # fmt: skip
def test_siblings_tried_in_a_wrong_way_are_caught(wrong):
    with pytest.raises(AssertionError, match="KS distance"):
        assert_standard(step_of_a_tree(3, 0.7, accept=wrong)[0])


@pytest.mark.parametrize("wrong", [from_the_wrong_side, as_if_p_were_1, mirrored])
def test_a_wrong_residual_of_a_tree_is_caught(wrong):
    with pytest.raises(AssertionError, match="KS distance"):
        assert_standard(step_of_a_tree(3, 1.5, residual=wrong)[0])
