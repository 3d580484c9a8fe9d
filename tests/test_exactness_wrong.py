"""Wrong samplers fail the battery that right ones pass: each is one slip away from the code.

A chain forgets small slips of single steps; those are caught in test_exactness_rounds.py, one round at a time.
"""

from __future__ import annotations

import pytest
import torch
from closed_form import Mixture, assert_same_law
from exactness_cases import CASES, reference, run, speculate, tree
from wrong_parts import (
    CorrectsAtTheNextState,
    SeesItsOwnNoise,
    accepts_too_often,
    every_sibling_against_the_whole_target,
    from_the_wrong_side,
    keeps_the_noise,
    reflects_fresh_noise_the_wrong_way,
    the_best_sibling_first,
    uncapped,
    without_its_distance,
)

from diffpolicy_spec import Nearest, Picard, sample_speculative
from diffpolicy_spec.coupling import residual_mass
from diffpolicy_spec.noise import NoiseTable

NAME = "two modes D=2 K=20"
FEW = 25_000  # a quarter of what right samplers must stand


def passes(sampler, seed: int = 6) -> None:
    assert_same_law(run(NAME, sampler, FEW, seed), reference(NAME), CASES[NAME].target)


def fails(sampler) -> None:
    with pytest.raises(AssertionError, match=r"KS distance|mode weights"):
        passes(sampler)


def test_the_right_samplers_pass():
    """The seeds and sizes of the wrong ones."""
    passes(speculate("nearest", NAME, 16))
    passes(speculate("picard", NAME, 16, "block"))
    passes(tree("five children, one level"))


# --- step by step ---


@pytest.mark.parametrize(("part", "wrong"), [
    ("accept_reflection", accepts_too_often), ("reflect", reflects_fresh_noise_the_wrong_way),
])  # fmt: skip
def test_a_wrong_reflection_coupling_is_caught(part, wrong, monkeypatch):
    monkeypatch.setattr(f"diffpolicy_spec.verification.{part}", wrong)
    fails(speculate("nearest", NAME, 16))


# --- drafts that know what they must not ---


def test_a_draft_that_sees_its_own_noise_is_caught():
    fails(lambda d, s, z: sample_speculative(d, s, z, drafter=SeesItsOwnNoise(), window=4))


@pytest.mark.parametrize("corrector", [Picard, CorrectsAtTheNextState])
def test_a_corrector_that_peeks_is_caught_and_one_that_does_not_passes(corrector):
    def sampler(denoise, schedule, noise):
        drafter = corrector(memory=0, corrector=True, sweeps=1, first_sweeps=2)
        return sample_speculative(denoise, schedule, noise, drafter=drafter, window=8, draft=lambda x, t, c: 1.5 * x)

    (passes if corrector is Picard else fails)(sampler)


# --- blocks ---


@pytest.mark.parametrize("drafter", [Picard(memory=0), Picard(memory=3)])
def test_noise_that_a_block_has_looked_at_and_kept_is_caught(drafter):
    """Picard drafts keep the noise as well: after a block it must be drawn anew."""
    fails(lambda d, s, z: sample_speculative(d, s, z, drafter=drafter, verifier=keeps_the_noise, window=8))


def test_a_block_whose_p_is_not_capped_at_1_is_caught():
    fails(lambda d, s, z: sample_speculative(d, s, z, verifier=uncapped, drafter=Nearest(), window=8))


@pytest.mark.parametrize("wrong", [without_its_distance, lambda log_p, d: 0.7 * residual_mass(log_p, d)])
def test_a_wrong_acceptance_of_blocks_is_caught(wrong, monkeypatch):
    monkeypatch.setattr("diffpolicy_spec.verification.residual_mass", wrong)
    fails(speculate("nearest", NAME, 8, "block"))


def test_a_residual_of_a_block_from_the_wrong_side_is_caught(monkeypatch):
    monkeypatch.setattr("diffpolicy_spec.verification.residual_step", from_the_wrong_side)
    fails(speculate("nearest", NAME, 8, "block"))


def test_redrawing_noise_of_committed_steps_only_is_caught(monkeypatch):
    """Of the right number of rows, the wrong ones."""
    honest = NoiseTable.redraw
    monkeypatch.setattr(NoiseTable, "redraw", lambda self, chain, steps, rows: honest(self, chain, steps, ~rows))
    fails(speculate("picard", NAME, 8, "block"))


# --- trees ---


@pytest.mark.parametrize("wrong", [every_sibling_against_the_whole_target, the_best_sibling_first])
def test_siblings_tried_in_a_wrong_way_are_caught(wrong, monkeypatch):
    monkeypatch.setattr("diffpolicy_spec.trees._accept", wrong)
    fails(tree("two children"))


def test_a_residual_of_a_tree_from_the_wrong_side_is_caught(monkeypatch):
    monkeypatch.setattr("diffpolicy_spec.trees.residual_step", from_the_wrong_side)
    fails(tree("two children"))


def test_a_target_that_is_a_little_off_is_caught():
    """The battery's own power at this size: one mode's weight 0.03 up, spreads 10 % up."""
    target = CASES[NAME].target
    for weights, covs in ((target.weights + torch.tensor([0.03, -0.03]), target.covs),
                          (target.weights, 1.1**2 * target.covs)):  # fmt: skip
        off = Mixture(weights, target.means, covs)
        fails(lambda d, s, z, off=off: speculate("nearest", NAME, 16)(off.denoiser(s), s, z))
