"""A pool of chains: who is in it, whose result is whose, and that nobody notices the others."""

from __future__ import annotations

import pytest
import torch
from busy_pool import pool_of
from exactness_cases import CASES, draft_of, drafter_of, schedule_of

from diffpolicy_spec import Inpainting, draw_noise, sample_ddpm, sample_paradigms, sample_speculative
from diffpolicy_spec.drafting.picard import _PicardTable
from diffpolicy_spec.finish import finish
from diffpolicy_spec.paradigms import Paradigms
from diffpolicy_spec.sequential import Sequential
from diffpolicy_spec.speculation import Speculation
from diffpolicy_spec.trees import Trees, sample_tree
from diffpolicy_spec.verification import VERIFIERS

NAME = "two modes D=2 K=20"
TARGET, SCHEDULE = CASES[NAME].target, schedule_of(NAME)
DENOISE = TARGET.denoiser(SCHEDULE)
K, N = SCHEDULE.num_steps, 20


def noise_of(i: int):
    return draw_noise((1, 2, 1), SCHEDULE, [own(i)])


def own(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(i)


def known_of(i: int) -> Inpainting | None:
    """Every third chain has one coordinate given."""
    if i % 3:
        return None
    mask = torch.zeros(1, 2, 1, dtype=torch.bool)
    mask[:, i % 2] = True
    return Inpainting(mask, torch.full((1, 2, 1), 0.1 * (i % 5)))


def speculation(kind: str, verifier: str):
    options = {"drafter": drafter_of(kind, NAME), "verifier": VERIFIERS[verifier], "window": 6}
    draft = draft_of(kind, NAME, SCHEDULE)

    def alone(i, inpaint=None):
        return sample_speculative(DENOISE, SCHEDULE, noise_of(i), generator=[own(1000 + i)], inpaint=inpaint,
                                  draft=draft, **options)  # fmt: skip

    return pytest.param(lambda networks: Speculation(networks, **options), alone, draft, id=f"{kind}, {verifier}")


def samplers():
    for kind in ("parent", "nearest", "drift", "model", "picard", "secant", "gain", "corrector"):
        for verifier in VERIFIERS:
            yield speculation(kind, verifier)
    others = {
        "tree": (Trees, sample_tree), "paradigms": (Paradigms, sample_paradigms), "ddpm": (Sequential, sample_ddpm),
    }  # fmt: skip
    for name, (make, sample) in others.items():
        yield pytest.param(
            make,
            lambda i, inpaint=None, sample=sample: sample(
                DENOISE, SCHEDULE, noise_of(i), generator=[own(1000 + i)], inpaint=inpaint
            ),
            None,
            id=name,
        )


def busy(make, draft, *, inpaint: bool, denoise=DENOISE) -> dict[int, torch.Tensor]:
    """x0 of N chains that join two by two, one slot short of what they want, one of five leaving on the way."""
    pool = pool_of(make, denoise, SCHEDULE, 2, 5, draft=draft)
    found, tenant, waiting = {}, {}, list(range(N))
    while waiting or pool.under_way:
        some = [waiting.pop(0) for _ in range(min(2, pool.free, len(waiting)))]
        for i in some:
            (slot,) = pool.join(noise_of(i), [own(1000 + i)], inpaint=known_of(i) if inpaint else None)
            tenant[slot] = i
        through = pool.round()
        for slot in through:
            found[tenant[slot]] = pool.sample([slot]).x0[0]
        pool.leave([*through, *(s for s in pool.under_way if tenant[s] % 5 == 4 and pool.at(s) > 3)])
    return found


def assert_as_alone(found: dict[int, torch.Tensor], alone, inpaint: bool) -> None:
    assert len(found) >= 0.8 * N
    same = sum(
        torch.allclose(x0, alone(i, known_of(i) if inpaint else None).x0[0], atol=1e-4) for i, x0 in found.items()
    )
    assert same >= len(found) - 1  # the last bits of a batch may turn one acceptance in thousands


@pytest.mark.parametrize("inpaint", [False, True], ids=["free", "some inpainted"])
@pytest.mark.parametrize(("make", "alone", "draft"), list(samplers()))
def test_a_chain_in_a_busy_pool_is_that_chain_alone(make, alone, draft, inpaint: bool):
    assert_as_alone(busy(make, draft, inpaint=inpaint), alone, inpaint)


def test_a_chain_that_keeps_the_drafts_of_the_one_before_is_caught(monkeypatch):
    """It would be exact, and another chain than alone: nothing else shows it."""
    make, alone, draft = speculation("secant", "steps").values
    monkeypatch.setattr(_PicardTable, "begin", lambda self, prior, chain: None)
    with pytest.raises(AssertionError):
        assert_as_alone(busy(make, draft, inpaint=False), alone, inpaint=False)


def test_one_row_of_nan_breaks_one_chain():
    sick: set[int] = set()

    def denoise(x, t, chain):
        out = DENOISE(x, t, chain)
        bad = torch.tensor([c in sick for c in chain.tolist()])
        return out.masked_fill(bad.view(-1, 1, 1), torch.nan)

    make, alone, _ = speculation("secant", "steps").values
    pool = pool_of(make, denoise, SCHEDULE, 2, 3)
    slots = [pool.join(noise_of(i), [own(1000 + i)])[0] for i in range(3)]
    pool.round()
    sick.add(slots[1])
    through = pool.round()
    assert through == [slots[1]]
    assert pool.broken(slots[1])
    with pytest.raises(FloatingPointError, match="timestep"):
        pool.sample([slots[1]])
    pool.leave(through)
    sick.clear()
    assert pool.join(noise_of(3), [own(1003)]) == [slots[1]]  # whoever comes next finds nothing of it
    found = {}
    while pool.under_way:
        through = pool.round()
        found |= {slot: pool.sample([slot]).x0[0] for slot in through}
        pool.leave(through)
    for slot, i in zip(slots, (0, 3, 2), strict=True):
        torch.testing.assert_close(found[slot], alone(i).x0[0], atol=1e-4, rtol=0)


def test_what_a_chain_cost_is_its_own():
    """Calls, rows and tests are counted from its beginning, whoever was in the slot before."""
    make, alone, _ = speculation("nearest", "steps").values
    pool = pool_of(make, DENOISE, SCHEDULE, 2, 1)
    for i in range(3):
        pool.join(noise_of(i), [own(1000 + i)])
        while not pool.round():
            pass
        ours, theirs = pool.sample([0]).stats, alone(i).stats
        for name in ("calls", "evaluations", "accepted", "rejected", "accepted_at", "tested_at", "draft_calls"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert pool.shared(0) == 1.0
        pool.leave([0])


@pytest.mark.parametrize("make", [Sequential, lambda networks: Speculation(networks, window=4)])
def test_chains_are_finished_while_others_go_on(make):
    pool = pool_of(make, DENOISE, SCHEDULE, 2, 3)
    slots = [pool.join(noise_of(i), [own(i)])[0] for i in range(3)]
    pool.round()
    assert all(0 < pool.at(slot) < K for slot in slots)
    stood = pool.at(slots[1])
    finish(pool.chains, torch.tensor([slots[1]]), 2)
    pool.finished([slots[1]])
    assert pool.under_way == [slots[0], slots[2]]
    stats = pool.sample([slots[1]]).stats
    assert stats.finished_at.tolist() == [stood]
    assert stats.calls.tolist() == [3]  # one round and two calls
    pool.leave([slots[1]])
    while pool.under_way:
        pool.round()
    assert not bool(pool.sample([slots[0], slots[2]]).stats.inexact.any())


def test_more_chains_than_slots_are_refused_and_change_nothing():
    pool = pool_of(Sequential, DENOISE, SCHEDULE, 2, 2)
    pool.join(noise_of(0), [own(0)])
    two = draw_noise((2, 2, 1), SCHEDULE, own(1))
    with pytest.raises(ValueError, match="2 chains want to begin and 1 of 2 slots are free"):
        pool.join(two, [own(1), own(2)])
    with pytest.raises(ValueError, match="with a generator each"):
        pool.join(noise_of(1), [])
    with pytest.raises(ValueError, match=r"\(Tp, Da\) = \(2, 1\)"):
        pool.join(draw_noise((1, 3, 1), SCHEDULE, own(1)), [own(1)])
    assert pool.free == 1
    assert len(pool.under_way) == 1


def test_an_empty_pool_calls_nothing():
    def denoise(x, t, chain):
        raise AssertionError("called")

    pool = pool_of(Sequential, denoise, SCHEDULE, 2, 2)
    assert pool.round() == []
    pool.join(noise_of(0), [own(0)])
    pool.leave(pool.under_way)
    assert pool.round() == []
    assert pool.free == 2
