"""float32 against float64: the library's state is float32; a straight float64 reference takes the same decisions.

The reference is written here, in numpy, one chain and one step at a time, from the papers (ASD, arXiv 2505.03983,
Alg. 1 to 3; DDPM, Ho et al. 2020, Alg. 2). Noise is fixed, so paths are compared, not laws: the same steps are tested,
accepted and rejected, except after a near-tie; states agree to a stated tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from closed_form import Mixture, gaussian, two_modes

from diffpolicy_spec import Nearest, Noise, Parent, Schedule, draw_noise, sample_ddim, sample_ddpm, sample_speculative
from diffpolicy_spec.coupling import accept_reflection, reflect

CHAINS = 64
# A test |log(1 - U) - log ratio| below this is a near-tie: float32's error in either side can turn it. The ratio sums
# D = 8 products of order 1 to 10 of float32 numbers whose own error, from the states, is of order 1e-5.
TIE = 1e-4
# Of states of order 1, after tens of float32 steps whose inputs the network's slope (up to about 10 between two modes)
# can magnify.
STATE = 5e-5

CASES = {
    "gaussian": (gaussian(8, stretch=1.0), 30, {}, None),
    "two modes": (two_modes(8), 40, {}, None),
    "two modes, epsilon": (two_modes(8, seed=1), 40, {"prediction_type": "epsilon", "beta_schedule": "linear",
                                                      "beta_end": 0.2}, None),
    "two modes, v": (two_modes(3, seed=2), 25, {"prediction_type": "v_prediction", "num_train_timesteps": 1000,
                                                "timestep_spacing": "trailing"}, None),
    "noisy last step": (two_modes(4, seed=3), 20, {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
                        None),
    "ddim eta=0.6": (two_modes(4, seed=4), 20, {}, 0.6),
}  # fmt: skip


def schedule_of(name: str) -> Schedule:
    _, K, changes, eta = CASES[name]
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
              "clip_sample": False}  # fmt: skip
    return Schedule.from_diffusers(config | changes, K, eta=eta)


# --- the reference, float64 ---


@dataclass
class Path:
    """What one chain did. ties: steps whose test was decided by less than TIE."""

    x0: np.ndarray
    calls: int
    tested: list[int]
    accepted: list[int]
    ties: list[int]


class Reference:
    """One chain in float64: x' = A m + B x + sigma xi, m = E[x0 | x]."""

    def __init__(self, target: Mixture, schedule: Schedule) -> None:
        self.K = schedule.num_steps
        self.A, self.B, self.sigma = (t.numpy() for t in (schedule.A, schedule.B, schedule.sigma))
        self.weights, self.means, self.covs = (t.numpy() for t in (target.weights, target.means, target.covs))
        self.abar = abar = schedule.abar.numpy()
        eye = np.eye(target.dim)
        marginal = abar[:, None, None, None] * self.covs + (1 - abar)[:, None, None, None] * eye  # (K, M, D, D)
        self.inverse, self.logdet = np.linalg.inv(marginal), np.linalg.slogdet(marginal)[1]

    def m(self, x: np.ndarray, k: int) -> np.ndarray:
        """E[x0 | x] of the mixture: per mode mu + sqrt(abar) C M^-1 (x - sqrt(abar) mu), M = abar C + (1 - abar) I."""
        root = np.sqrt(self.abar[k])
        difference = x - root * self.means  # (M, D)
        solved = np.einsum("mij,mj->mi", self.inverse[k], difference)
        logs = np.log(self.weights) - 0.5 * (difference * solved).sum(1) - 0.5 * self.logdet[k]
        share = np.exp(logs - logs.max())
        return share / share.sum() @ (self.means + root * np.einsum("mij,mj->mi", self.covs, solved))

    def step(self, k: int, m: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        return self.A[k] * m + self.B[k] * x + self.sigma[k] * z

    def sequential(self, x: np.ndarray, xi: np.ndarray) -> np.ndarray:
        for k in range(self.K):
            x = self.step(k, self.m(x, k), x, xi[k])
        return x

    def speculate(self, x: np.ndarray, xi: np.ndarray, u: np.ndarray, window: int, parent: bool) -> Path:
        """ASD with one x0 per round, frozen: the parent's, from a call of its own, or the freshest there is."""
        path = Path(x0=x, calls=0, tested=[], accepted=[], ties=[])
        k, frozen = 0, np.zeros_like(x)
        evaluated = not parent  # whether `frozen` may be drafted with
        while k < self.K:
            rows = min(window if evaluated else 1, self.K - k)
            drafts = [x]
            for i in range(rows - 1):
                drafts.append(self.step(k + i, frozen, drafts[-1], xi[k + i]))
            ms = [self.m(row, k + i) for i, row in enumerate(drafts)]  # in one batched call
            path.calls += 1
            evaluated = True
            for i in range(rows):
                if i == rows - 1:  # nothing was drafted beyond: the target's own step
                    x, frozen = self.step(k + i, ms[i], drafts[i], xi[k + i]), ms[i]
                    break
                v = self.A[k + i] * (frozen - ms[i]) / self.sigma[k + i]
                log_ratio = -xi[k + i] @ v - 0.5 * v @ v
                path.tested.append(k + i)
                if abs(np.log1p(-u[k + i]) - log_ratio) < TIE:
                    path.ties.append(k + i)
                if np.log1p(-u[k + i]) <= log_ratio:
                    path.accepted.append(k + i)
                    continue
                e = v / np.linalg.norm(v)
                mirrored = xi[k + i] - 2 * (e @ xi[k + i]) * e
                # the freshest x0 is the rejected state's, at the same step as the mirrored one
                x, frozen = self.step(k + i, ms[i], drafts[i], mirrored), ms[i + 1]
                evaluated = not parent
                break
            k += i + 1
        path.x0 = x
        return path


def chains_of(noise: Noise):
    """Each chain's start (D,), xi (K, D) and U (K,), float64 copies of the float32 draws."""
    start, steps, uniforms = noise.start.flatten(1), noise.steps.flatten(2), noise.uniforms
    for b in range(start.shape[0]):
        yield start[b].double().numpy(), steps[:, b].double().numpy(), uniforms[:, b].double().numpy()


# --- whole chains ---


@pytest.mark.parametrize("name", CASES)
def test_sequential_chains_are_the_float64_chains(name: str):
    target, schedule = CASES[name][0], schedule_of(name)
    noise = draw_noise((CHAINS, target.dim, 1), schedule, torch.Generator().manual_seed(20))
    sampler = sample_ddpm if CASES[name][3] is None else sample_ddim
    ours = sampler(target.denoiser(schedule), schedule, noise).x0.flatten(1)
    assert ours.dtype == torch.float32
    reference = Reference(target, schedule)
    exact = np.stack([reference.sequential(x, xi) for x, xi, _ in chains_of(noise)])
    np.testing.assert_allclose(ours.double().numpy(), exact, rtol=0, atol=STATE)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("drafter", "parent"), [(Parent(), True), (Nearest(), False)], ids=["parent", "nearest"])
@pytest.mark.parametrize("window", [1, 7, 100])
def test_speculative_chains_take_the_float64_decisions(name: str, drafter, parent: bool, window: int):
    target, schedule = CASES[name][0], schedule_of(name)
    noise = draw_noise((CHAINS, target.dim, 1), schedule, torch.Generator().manual_seed(21))
    ours = sample_speculative(target.denoiser(schedule), schedule, noise, drafter=drafter, window=window)
    reference, compared = Reference(target, schedule), 0
    for b, (x, xi, u) in enumerate(chains_of(noise)):
        path = reference.speculate(x, xi, u, window, parent)
        if path.ties:  # what follows a near-tie may be another path of the same law
            continue
        compared += 1
        assert int(ours.stats.calls[b]) == path.calls
        assert np.repeat(np.arange(reference.K), ours.stats.tested_at[b].numpy()).tolist() == path.tested
        assert np.repeat(np.arange(reference.K), ours.stats.accepted_at[b].numpy()).tolist() == path.accepted
        np.testing.assert_allclose(ours.x0[b].flatten().double().numpy(), path.x0, rtol=0, atol=STATE)
    # a chain has at most 40 tests, each a near-tie with probability of order TIE
    assert compared >= 0.95 * CHAINS


def test_the_reference_speculates():
    """What is compared above is not an empty exercise: windows are accepted in part, and steps are rejected."""
    target, schedule = CASES["two modes"][0], schedule_of("two modes")
    noise = draw_noise((CHAINS, target.dim, 1), schedule, torch.Generator().manual_seed(21))
    reference = Reference(target, schedule)
    for parent in (True, False):
        paths = [reference.speculate(*chain, 100, parent) for chain in chains_of(noise)]
        assert np.mean([p.calls for p in paths]) < 0.8 * reference.K
        assert np.mean([len(p.tested) - len(p.accepted) for p in paths]) > 2
        assert np.mean([len(p.accepted) for p in paths]) > 10


# --- its parts ---


@pytest.mark.parametrize("K", [10, 100, 1000])
@pytest.mark.parametrize("eta", [None, 0.3])
def test_the_tables_are_the_float64_ones_to_rounding(K: int, eta):
    config = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    schedule = Schedule.from_diffusers(config, K, eta=eta)
    tables, half_ulp = schedule.on("cpu"), float(torch.finfo(torch.float32).eps) / 2
    for table in ("A", "B", "sigma", "abar"):
        single, double = getattr(tables, table), getattr(schedule, table)
        assert single.dtype == torch.float32
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=half_ulp, atol=1e-38)
    # what is derived from them is derived in float64 and rounded once: products of up to K factors do not drift
    decay = np.eye(K)
    for j in range(1, K):
        decay[j, :j] = decay[j - 1, :j] * schedule.B[j - 1].item()
    np.testing.assert_allclose(tables.decay.double().numpy(), decay, rtol=1.01 * half_ulp, atol=1e-37)
    response = tables.response.double().numpy()  # [j, i] = decay[j, i + 1]
    np.testing.assert_allclose(response[:, :-1], decay[:, 1:], rtol=1.01 * half_ulp, atol=1e-37)
    noisy = schedule.sigma > 0
    torch.testing.assert_close(tables.shift[noisy].double(), (schedule.A / schedule.sigma)[noisy], rtol=half_ulp,
                               atol=0)  # fmt: skip
    assert bool((tables.shift[~noisy] == 0).all())


@pytest.mark.parametrize("dim", [1, 8, 160, 1024])
def test_coupling_decisions_are_the_float64_ones_but_for_near_ties(dim: int):
    """The same float32 v, xi and U; the log ratio errs by a few eps of the sum of its terms' sizes."""
    g = torch.Generator().manual_seed(dim)
    v = torch.randn(10_000, dim, generator=g)
    v *= 10 ** (4 * torch.rand(10_000, 1, generator=g) - 3) / v.norm(dim=1, keepdim=True)
    xi, u = torch.randn(10_000, dim, generator=g), torch.rand(10_000, generator=g)
    v64, xi64, u64 = v.double(), xi.double(), u.double()
    margin = (torch.log1p(-u64) + (xi64 * v64).sum(1) + 0.5 * (v64**2).sum(1)).abs()
    bound = 4 * torch.finfo(torch.float32).eps * (1 + (xi64 * v64).abs().sum(1) + (v64**2).sum(1) - torch.log1p(-u64))
    ours, exact = accept_reflection(v, xi, u), accept_reflection(v64, xi64, u64)
    differ = ours != exact
    assert bool((margin <= bound)[differ].all())
    assert int((margin <= bound).sum()) < 50  # and near-ties are rare: few draws could differ at all
    torch.testing.assert_close(reflect(v, xi).double(), reflect(v64, xi64), rtol=0, atol=2e-6 * dim**0.5)
