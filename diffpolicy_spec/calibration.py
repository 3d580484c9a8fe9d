"""Fitting what speculation can use beside a checkpoint: gains per step, from the policy's own chains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .gains import STRUCTURES, Dense, Gains, LowRank
from .gains.fitting import DenseFit, Fit, KroneckerFit, LowRankFit, Perturbations
from .networks import Denoise, Networks
from .noise import draw_noise
from .schedule import Schedule

__all__ = ["MAX_BYTES", "FittedGains", "calibrate", "fit_gains"]

MAX_BYTES = 20_000_000
"""What gains may take in a file where nothing else is asked for."""

_PILOT_EVERY = 4  # steps that the subspace of low-rank gains is looked for at
_ENERGY = 0.999  # share of x0's movement that it is to hold


@dataclass(frozen=True)
class FittedGains:
    """Gains of one structure and how well they predict.

    Attributes:
        gains: the gains.
        error: on chains held out from the fit, the mean over steps of |dm - dx G|^2 / |dm|^2, its square root: 1 is no
            better than no gains; NaN where no chains were held out.
    """

    gains: Gains
    error: float


@torch.no_grad()
def calibrate(
    denoise: Denoise,
    schedule: Schedule,
    shape: tuple[int, int, int],
    *,
    generator: torch.Generator | None = None,
    structure: str = "auto",
    max_bytes: int = MAX_BYTES,
    perturbations: int = 2,
    scale: float = 1.0,
    ridge: float = 1e-2,
    batch: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Gains:
    """Fit G_k ~ E[d x0_k / d x]' by ridge regression over sequential chains of the policy.

    The states x of each step k are perturbed by dx of covariance (scale sigma_k)^2 I, the size of what a draft is off
    by, in orthogonal directions (`Perturbations`):

        G_k = (sum dx' dx + ridge n scale^2 sigma_k^2 I)^-1 (sum dx' dm),   dm = x0(x + dx) - x0(x), rows

    Dense gains are that. Those of other structures (`STRUCTURES`) are next to it with the noise of the estimate taken
    out, which makes them the better predictors where pairs are few. Gains cannot harm exactness; poor ones cost
    acceptance.

    Args:
        denoise: the policy's network; `chain` runs over `shape[0]` chains, best one per observation of many episodes.
        shape: (chains, Tp, Da); chains x perturbations of a few times Tp x Da is enough for dense gains, of about
            Tp x Da for others.
        structure: "dense", "kronecker", "lowrank", or "auto": dense where that fits into max_bytes, else of the others
            the one that predicts chains best which it was not fitted to.
        max_bytes: what they may take in a file (float16).
        perturbations: perturbed states per chain and step.
        batch: rows per network call.
        progress: wraps the iteration over steps, such as `tqdm`.

    Returns:
        gains of float32; `Gains.state_dict` is stored beside the checkpoint.

    Raises:
        ValueError: no perturbations, a scale or ridge that cannot be used, an unknown structure, or one that does not
            fit into max_bytes.
    """
    dense = Dense.bytes_stored(schedule.num_steps, shape[1] * shape[2])
    if structure == "dense" and dense > max_bytes:
        raise ValueError(
            f"dense gains of D = {shape[1] * shape[2]} take {dense / 1e6:.1f} MB, max_bytes is {max_bytes / 1e6:.1f} "
            "MB: use structure='auto', or allow more"
        )
    wanted = [structure] if structure != "auto" else ["dense"] if dense <= max_bytes else ["kronecker", "lowrank"]
    fitted = fit_gains(
        denoise, schedule, shape, generator=generator, structures=wanted, max_bytes=max_bytes,
        perturbations=perturbations, scale=scale, ridge=ridge, batch=batch, device=device, progress=progress,
        holdout=0.125 if len(wanted) > 1 else 0.0,
    )  # fmt: skip
    return min(fitted.values(), key=lambda fit: fit.error if len(fitted) > 1 else 0.0).gains


@torch.no_grad()
def fit_gains(
    denoise: Denoise,
    schedule: Schedule,
    shape: tuple[int, int, int],
    *,
    structures: Sequence[str],
    holdout: float = 0.125,
    generator: torch.Generator | None = None,
    max_bytes: int = MAX_BYTES,
    perturbations: int = 2,
    scale: float = 1.0,
    ridge: float = 1e-2,
    batch: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, FittedGains]:
    """Gains of several structures from the same chains; arguments as in `calibrate`.

    Args:
        structures: names of `STRUCTURES`.
        max_bytes: for each structure but dense, which takes what it takes.
        holdout: share of the chains that are not fitted to but predicted; 0 for none.

    Raises:
        ValueError: see `calibrate`; also a holdout that leaves no chain on either side.
    """
    if perturbations < 1 or not scale > 0 or not ridge >= 0:
        raise ValueError(
            f"calibration needs perturbations >= 1, scale > 0 and ridge >= 0, got {perturbations}, {scale}, {ridge}"
        )
    unknown = sorted(set(structures) - set(STRUCTURES))
    if unknown or not structures:
        raise ValueError(f"unknown structure of gains {unknown}; known: auto, {', '.join(STRUCTURES)}")
    (B, Tp, Da), K, kept = shape, schedule.num_steps, int(shape[0] * (1 - holdout))
    if not 0 <= holdout < 1 or kept < 1 or (holdout and kept == B):
        raise ValueError(f"a holdout of {holdout} of {B} chains leaves none on one side: use more chains")
    if set(structures) - {"dense"} and kept * perturbations < 2:
        raise ValueError(f"gains other than dense need 2 pairs at least, got {kept} chains x {perturbations}")
    rows = _Rows(denoise, schedule, shape, torch.device(device), generator, scale, batch)
    fits: dict[str, Fit] = {}
    for name in structures:
        if name == "dense":
            fits[name] = DenseFit()
        elif name == "kronecker":
            fits[name] = KroneckerFit(K, Tp, Da, max_bytes)
        else:
            fits[name] = LowRankFit(_subspace(rows, min(B, max(32, Tp * Da // 4)), max_bytes))
    errors = dict.fromkeys(fits, 0.0)
    for (dx, dm), (dx_held, dm_held) in rows.pairs(B, kept, perturbations, progress):
        for name, fit in fits.items():
            G = fit.add(dx, dm, ridge)
            moved = float(dm_held.square().sum()) or 1.0
            errors[name] += float((dm_held - dx_held @ G).square().sum()) / moved / K
    timesteps = schedule.timesteps
    return {
        name: FittedGains(Gains(fit.result(), timesteps.clone()), errors[name] ** 0.5 if holdout else float("nan"))
        for name, fit in fits.items()
    }


class _Rows:
    """Sequential chains of a policy whose states are perturbed on the way."""

    def __init__(
        self, denoise: Denoise, schedule: Schedule, shape: tuple[int, int, int], device: torch.device,
        generator: torch.Generator | None, scale: float, batch: int,
    ) -> None:  # fmt: skip
        self.schedule, self.shape, self.device = schedule, shape, device
        self._generator, self._scale, self._batch = generator, scale, batch
        self._networks = Networks(denoise, schedule, shape, device)
        self._directions = Perturbations(shape[1] * shape[2], generator, device)

    def pairs(
        self, chains: int, kept: int, perturbations: int, progress: Callable[[Iterable[int]], Iterable[int]],
        every: int = 1,
    ) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:  # fmt: skip
        """Per step (dx, dm) of the first `kept` of so many chains, and (dx, dm) of the others; (n, D) each.

        every: only each so many steps, counted from the last.
        """
        schedule, K = self.schedule, self.schedule.num_steps
        noise = draw_noise((chains, *self.shape[1:]), schedule, self._generator, self.device)
        tables, x = schedule.on(self.device), noise.start.flatten(1)
        everyone = torch.arange(chains, device=self.device)
        parts = [everyone[:kept].repeat(perturbations), everyone[kept:].repeat(perturbations)]
        for k in progress(range(K)):
            m = self._x0(x, k, everyone)
            if (K - 1 - k) % every == 0:
                size = self._scale * float(tables.sigma[k] if k < K - 1 else tables.sigma[k - 1]) or 1.0
                both = []
                for chain in parts:
                    halves = (len(chain) // 2, len(chain) - len(chain) // 2)
                    dx = size * torch.cat([self._directions.draw(n) for n in halves if n] or [x[:0]])
                    both.append((dx, self._x0(x[chain] + dx, k, chain) - m[chain]))
                yield both[0], both[1]
            x = tables.A[k] * m + tables.B[k] * x + tables.sigma[k] * noise.steps[k].flatten(1)

    def _x0(self, x: Tensor, k: int, chain: Tensor) -> Tensor:
        """x0 at rows x: (n, D) of step k."""
        parts = zip(x.split(self._batch), chain.split(self._batch), strict=True)
        found = [self._networks.predict_x0(r, torch.full_like(c, k), c) for r, c in parts if len(r)]
        self._networks.check()
        return torch.cat(found) if found else x


def _subspace(rows: _Rows, chains: int, max_bytes: int) -> Tensor:
    """(D, R) principal directions of how x0 moves, over all steps alike, from a run of some chains of its own.

    R: what holds nearly all of the movement, at most D / 2, and what fits into max_bytes.
    """
    D, K = rows.shape[1] * rows.shape[2], rows.schedule.num_steps
    moments = torch.zeros(D, D, device=rows.device)
    for (_, dm), _ in rows.pairs(chains, chains, 1, iter, every=_PILOT_EVERY):
        moments += dm.T @ dm / dm.square().sum().clamp(min=1e-30)
    values, vectors = torch.linalg.eigh(moments)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    share = values.cumsum(0) / values.sum().clamp(min=1e-30)
    most = max((R for R in range(1, D // 2 + 1) if LowRank.bytes_stored(K, D, R) <= max_bytes), default=0)
    if not most:
        raise ValueError(
            f"lowrank gains of D = {D} and K = {K} do not fit into max_bytes = {max_bytes / 1e6:.1f} MB "
            "(or D is below 2): use structure='dense', or allow more"
        )
    return vectors[:, : min(most, int((share < _ENERGY).sum()) + 1)].contiguous()
