"""Exactness: every drafter with every verifier, and trees, against the sequential sampler and, where there is one, the
analytic law.

The full product of drafter, verifier, chain, prediction and window is slow; in CI a covering design stands for it.
`closed_form.ALPHA` states the false-alarm rate. That wrong samplers fail: test_exactness_wrong.py.
"""

from __future__ import annotations

import itertools

import pytest
from closed_form import assert_normal, assert_same_law
from exactness_cases import (
    ANALYTIC,
    CASES,
    CHAINS,
    KINDS,
    PREDICTIONS,
    SPECIAL,
    TREES,
    N,
    reference,
    run,
    schedule_of,
    seed_of,
    speculate,
    tree,
)

WINDOWS = (4, 16, "all")
VERIFIERS = ("steps", "block")
Cell = tuple[str, str, str, str, int | str]  # drafter, verifier, chain, prediction, window


def check(name: str, kind: str, verifier: str, window: int | str, prediction: str | None = None, n: int = 0) -> None:
    seed = seed_of(name, kind, verifier, window, prediction)
    samples = run(name, speculate(kind, name, window, verifier, prediction), n or N[verifier], seed, prediction)
    assert_same_law(samples, reference(name), CASES[name].target)
    if name in ANALYTIC:
        assert_normal(samples, *CASES[name].target.chain_law(schedule_of(name)))


def design() -> list[Cell]:
    """Three cells a drafter, one for each kind of chain; the other factors turn at their own pace."""
    return [
        (kind, VERIFIERS[(i + j) % 2], chain, PREDICTIONS[(i + j) % 3], WINDOWS[(i // 3 + 2 * j) % 3])
        for i, kind in enumerate(KINDS)
        for j, chain in enumerate(CHAINS)
    ]


@pytest.mark.parametrize(("kind", "verifier", "chain", "prediction", "window"), design())
def test_speculation_keeps_the_law(kind: str, verifier: str, chain: str, prediction: str, window: int | str):
    check(chain, kind, verifier, window, prediction)


def test_the_design_covers_every_pair_of_settings():
    factors = (KINDS, VERIFIERS, tuple(CHAINS), PREDICTIONS, WINDOWS)
    for a, b in itertools.combinations(range(5), 2):
        pairs = {(cell[a], cell[b]) for cell in design()}
        missing = set(itertools.product(factors[a], factors[b])) - pairs
        assert not missing, f"never together: {missing}"


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_product_keeps_the_law(kind: str, verifier: str, chain: str, prediction: str, window: int | str):
    check(chain, kind, verifier, window, prediction, n=50_000)


def tree_cells():
    for i, shape in enumerate(TREES):
        for j, chain in enumerate(CHAINS):
            yield shape, chain, PREDICTIONS[(i + j) % 3]


@pytest.mark.parametrize(("shape", "chain", "prediction"), list(tree_cells()))
def test_a_tree_keeps_the_law(shape: str, chain: str, prediction: str):
    samples = run(chain, tree(shape), N["tree"], seed_of(shape, chain, prediction), prediction)
    assert_same_law(samples, reference(chain), CASES[chain].target)


def special_cells():
    """Every drafter on every target, the verifier and the window (4, or all) by turns."""
    for i, name in enumerate(SPECIAL):
        for j, kind in enumerate(KINDS):
            yield name, kind, VERIFIERS[(i + j) % 2], (4, "all")[(i + j // 2) % 2]
        yield name, "secant", "steps", 1  # one row drafts nothing: one drafter stands for all


@pytest.mark.parametrize(("name", "kind", "verifier", "window"), list(special_cells()))
def test_other_targets_and_settings_keep_the_law(name: str, kind: str, verifier: str, window: int | str):
    check(name, kind, verifier, window, n=N["block"])


@pytest.mark.parametrize("name", SPECIAL)
def test_a_tree_keeps_the_law_of_other_targets_and_settings(name: str):
    samples = run(name, tree("two children"), N["tree"], seed_of(name, "tree"))
    assert_same_law(samples, reference(name), CASES[name].target)
    if name in ANALYTIC:
        assert_normal(samples, *CASES[name].target.chain_law(schedule_of(name)))


@pytest.mark.parametrize(("kind", "verifier"), [("gain", "steps"), ("nearest", "block")])
def test_a_full_length_chain_keeps_the_law(kind: str, verifier: str):
    """K = 100, D = 2, the widest window."""
    name, n = "two modes D=2 K=100", {"steps": 25_000, "block": 12_500}
    samples = run(name, speculate(kind, name, 100, verifier), n[verifier], seed_of(name, kind, verifier))
    assert_same_law(samples, reference(name, 100_000), CASES[name].target)


@pytest.mark.slow
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [16, 100])
def test_long_chains_of_many_dimensions_keep_the_law(kind: str, window: int, verifier: str):
    name, batch = "two modes D=32 K=100", 2_000
    expected = reference(name, 100_000, batch)
    samples = run(name, speculate(kind, name, window, verifier), 40_000, seed_of(kind, window, verifier), batch=batch)
    assert_same_law(samples, expected, CASES[name].target)


@pytest.mark.parametrize("name", ANALYTIC)
def test_the_sequential_sampler_has_the_analytic_law(name: str):
    assert_normal(reference(name), *CASES[name].target.chain_law(schedule_of(name)))
