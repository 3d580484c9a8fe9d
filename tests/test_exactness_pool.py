"""Exactness of chains in a pool: the sequential law, and nothing in common with who had the slot before.

Chains join at random and leave at random while others are under way; rows are shared out at random. The false-alarm
rate of a comparison is `closed_form.ALPHA` = 1e-6; a test has at most 10. With n = 25,000 samples a KS distance of
0.0175 is seen, and with 20,000 pairs a correlation of 0.035. Wrong pools must fail the same tests.
"""

from __future__ import annotations

import pytest
from busy_pool import AnyRows, Make, Served, pool_of, serve
from closed_form import ALPHA, assert_same_law
from exactness_cases import CASES, TREES, draft_of, drafter_of, reference, schedule_of, seed_of
from scipy import stats

from diffpolicy_spec.chains import Chains
from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.choice.sharing import Sharing
from diffpolicy_spec.noise import NoiseTable
from diffpolicy_spec.pool import Share
from diffpolicy_spec.sequential import Sequential
from diffpolicy_spec.speculation import Speculation
from diffpolicy_spec.trees import Trees
from diffpolicy_spec.verification import VERIFIERS

NAME, N, SLOTS = "ddpm", 25_000, 400
CASE, SCHEDULE = CASES[NAME], schedule_of(NAME)
D, K = CASE.target.dim, SCHEDULE.num_steps

SAMPLERS: dict[str, tuple[str, str]] = {
    "secant": ("secant", "steps"),
    "gain, blocks": ("gain", "block"),
    "nearest, blocks": ("nearest", "block"),
    "parent": ("parent", "steps"),
    "corrector": ("corrector", "steps"),
}


def speculation(kind: str, verifier: str, window: int = 6) -> Make:
    return lambda networks: Speculation(
        networks, drafter=drafter_of(kind, NAME), verifier=VERIFIERS[verifier], window=window
    )


def served(make: Make, seed: int, *, kind: str = "", share: Share | None = None) -> Served:
    draft = draft_of(kind, NAME, SCHEDULE)
    pool = pool_of(make, CASE.target.denoiser(SCHEDULE), SCHEDULE, D, SLOTS, draft=draft, share=share)
    return serve(pool, SCHEDULE, D, N, seed)


def check(found: Served) -> None:
    assert_same_law(found.x0, reference(NAME), CASE.target)
    before, after = found.successors()
    for d in range(D):
        result = stats.pearsonr(before[:, d].numpy(), after[:, d].numpy())
        assert result.pvalue > ALPHA, f"correlation with the slot's last tenant {result.statistic:.3f}"


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_that_come_and_go_keep_the_law(name: str):
    kind, verifier = SAMPLERS[name]
    check(served(speculation(kind, verifier), seed_of(name), kind=kind, share=AnyRows()))


def test_chains_whose_rows_are_shared_out_by_what_was_accepted_keep_the_law():
    """Windows of the pool's own acceptance, under costs that make them narrower the more chains there are."""
    share = Sharing(K, CallCost((1, 100, 2000), (1.0, 1.2, 60.0)))
    check(served(speculation("secant", "steps", K), 5, share=share))
    assert len({tuple(share.windows(b)) for b in (2, 50, 300)}) > 1


@pytest.mark.parametrize("make", [
    pytest.param(Sequential, id="sequential"),
    pytest.param(lambda networks: Trees(networks, **TREES["fewer further down"]), id="tree"),
])  # fmt: skip
def test_other_samplers_keep_the_law(make: Make):
    check(served(make, 7))


# --- wrong pools ---


def fails(what: str, make: Make, **options) -> None:
    with pytest.raises(AssertionError, match=what):
        check(served(make, 6, **options))


def test_the_right_pool_passes_with_the_seed_of_the_wrong_ones():
    check(served(speculation("secant", "steps"), 6))


def test_a_chain_that_keeps_the_noise_of_the_one_before_is_caught(monkeypatch):
    honest = NoiseTable.load

    def kept(self, noise, generator, known, chain=None):
        xi, u = self.xi.clone(), self.u.clone()
        honest(self, noise, generator, known, chain)
        old = (xi[chain].abs().sum((1, 2)) > 0).nonzero().flatten()
        self.xi[chain[old]], self.u[chain[old]] = xi[chain[old]], u[chain[old]]

    monkeypatch.setattr(NoiseTable, "load", kept)
    fails(r"KS distance|mode weights|last tenant", speculation("secant", "steps"))


def test_a_chain_that_begins_at_the_step_where_the_one_before_left_is_caught(monkeypatch):
    honest = Chains.begin

    def kept(self, noise, **given):
        before = self.k.clone()
        honest(self, noise, **given)
        left = given["chain"][(before[given["chain"]] > 0) & (before[given["chain"]] < K)]
        self.stand(left, before[left])

    monkeypatch.setattr(Chains, "begin", kept)
    fails(r"KS distance|mode weights", speculation("secant", "steps"))


def test_rows_that_depend_on_noise_nobody_has_tested_yet_are_caught():
    """Two rows where the next step's noise points one way, one where it points the other."""

    class Peeks(AnyRows):
        def __call__(self, at, most):
            chain = pool.under_way
            ahead = pool.chains._noise.xi[chain, at, 0] > 0
            return [min(2, n) if up else 1 for up, n in zip(ahead.tolist(), most, strict=True)]

    make = speculation("nearest", "steps")
    pool = pool_of(make, CASE.target.denoiser(SCHEDULE), SCHEDULE, D, SLOTS, share=Peeks())
    with pytest.raises(AssertionError, match=r"KS distance|mode weights"):
        check(serve(pool, SCHEDULE, D, N, 6))
