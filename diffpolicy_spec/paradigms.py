"""ParaDiGMS: parallel sampling by Picard iteration to a tolerance. The approximate peer."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import Chains
from .inpainting import Inpainting
from .networks import Denoise, Networks
from .noise import Generator, Noise
from .sampling import draw
from .schedule import Schedule
from .stats import Sample
from .window import DEFAULT_WINDOW, Turn, make_window, widths_to, window_sizes

__all__ = ["DEFAULT_TOLERANCE", "Paradigms", "check_paradigms", "sample_paradigms"]

DEFAULT_TOLERANCE = 0.1
"""Of a state's movement, in units of its step's sigma."""


def check_paradigms(window: int = DEFAULT_WINDOW, tolerance: float = DEFAULT_TOLERANCE) -> None:
    """Raise ValueError for a window that is not a positive number or a negative tolerance."""
    window_sizes(window, 1, "cpu")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")


def sample_paradigms(
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    window: int = DEFAULT_WINDOW,
    tolerance: float = DEFAULT_TOLERANCE,
    inpaint: Inpainting | None = None,
) -> Sample:
    """Slide a window over the chain and iterate all its states at once (Shih et al. 2023, arXiv 2305.16317, Alg. 1).

        x_{k+j+1} <- x_k + sum_{i<=j} ((A_{k+i} m(x_{k+i}) + (B_{k+i} - 1) x_{k+i}) + sigma_{k+i} xi_{k+i})

    The window moves to the first state that moved by more than the tolerance: |new - old|^2 / D > tolerance^2 sigma^2.
    Not exact, unless tolerance = 0: accepted states solve the chain only to the tolerance. The noise is the chain's, so
    with tolerance 0 the result is the sequential sampler's.

    Args:
        window: states iterated at once, per chain.
        tolerance: relative to each step's sigma.

    Raises:
        ValueError: the tolerance is negative, or the window below 1.
    """
    check_paradigms(window, tolerance)
    return draw(
        lambda networks: Paradigms(networks, window=window, tolerance=tolerance), denoise, schedule, noise,
        generator=generator, inpaint=inpaint,
    )  # fmt: skip


class Paradigms(Chains):
    """Chains whose states are iterated; see `sample_paradigms`."""

    def __init__(
        self, networks: Networks, *, window: int = DEFAULT_WINDOW, tolerance: float = DEFAULT_TOLERANCE
    ) -> None:
        super().__init__(networks)
        (B, D), K = self.x.shape, self.schedule.num_steps
        self._window, self._tolerance = window, tolerance
        # States after 0, 1, ... K steps, and a bin for padding.
        self._path = torch.zeros(B, K + 2, D, device=networks.device)
        self._xi = torch.zeros(B, K, D, device=networks.device)

    def load(
        self, noise: Noise, generator: Generator, warm_start: Tensor | None, chain: Tensor | None
    ) -> None:  # fmt: skip
        to: Tensor | slice = slice(None) if chain is None else chain
        self._xi[to] = noise.steps.flatten(2).transpose(0, 1)
        self._path[to] = self.x[to, None]  # states not reached yet start at x_0

    def sizes(self, chain: Tensor, k: Tensor) -> Tensor:
        return (self.schedule.num_steps - k).clamp(max=self._window)

    def widths(self) -> list[int]:
        return widths_to(min(self._window, self.schedule.num_steps))

    def round(self, turn: Turn) -> None:
        chain, K, t = turn.chain, self.schedule.num_steps, self.tables
        at = self.k[chain]
        w = make_window(turn, at, self.rows[chain], K)
        rows, steps = chain[:, None], w.steps
        old = self._path[rows, steps]
        m = self.networks.predict_rows(turn, old, steps, w.valid, old)
        A, B, sigma = (table[steps].unsqueeze(-1) for table in (t.A, t.B, t.sigma))
        change = (A * m + (B - 1) * old + sigma * self._xi[rows, steps]) * w.valid.unsqueeze(-1)
        new = self._path[chain, at].unsqueeze(1) + change.cumsum(dim=1)  # the states after each step
        moved = (new - self._path[rows, steps + 1]).square().mean(-1)
        settled = (moved <= (self._tolerance * sigma.squeeze(-1)) ** 2) & w.valid
        # The first state that has not settled is computed from settled ones: it is where the window moves to.
        ahead = torch.minimum(settled.long().cumprod(dim=1).sum(dim=1) + 1, w.sizes)
        self._path[rows, torch.where(w.valid, steps + 1, K + 1)] = new
        ends = at + w.sizes
        last = self._path[chain, ends].unsqueeze(1)
        beyond = torch.arange(K + 2, device=at.device) > ends[:, None]
        self._path[chain] = torch.where(beyond.unsqueeze(-1), last, self._path[chain])
        self.x[chain] = self._path[chain, at + ahead]
        self.advance(chain, at, w.sizes, ahead - 1, torch.zeros_like(at))
