"""Calling a policy's networks for the rows of a round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .clock import Clock
from .inpainting import Inpainting
from .schedule import Schedule
from .window import Turn, Window

__all__ = ["Denoise", "Networks"]

# denoise(x: (N, Tp, Da), t: (N,) long, chain: (N,) long) -> (N, Tp, Da), the network's prediction.
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


class Networks:
    """The denoiser and the draft network of B chains, called with flat rows; what is inpainted is filled in.

    Args:
        denoise: the denoiser; draft: a draft network, called alike, that returns x0; None for none.
        shape: (B, Tp, Da).
        inpaint: known coordinates, or None.
    """

    def __init__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        draft: Denoise | None = None,
        inpaint: Inpainting | None = None,
    ) -> None:
        self.schedule, self.shape, self.device = schedule, shape, device
        self.clock, self.inpaint = Clock(device), inpaint
        self.denoise, self.draft = denoise, draft
        self.draft_calls = torch.zeros(shape[0], dtype=torch.long, device=device)
        # (B,) the first step of each chain whose output was not finite; K: none.
        self.failed = torch.full_like(self.draft_calls, schedule.num_steps)

    @property
    def known(self) -> Tensor | None:
        """(B, D) bool, coordinates that are not noised."""
        return None if self.inpaint is None else self.inpaint.mask.flatten(1)

    def begin(self, inpaint: Inpainting | None, chain: Tensor | None = None) -> None:
        """Forget the chunk before. Inpainting is copied to where it was: a captured graph reads it there.

        chain: (b,) long, only these chains begin, with inpainting of theirs or without; None: all.

        Raises:
            ValueError: all begin, with inpainting where there was none, or the other way round.
        """
        to: Tensor | slice = slice(None) if chain is None else chain
        self.draft_calls[to] = 0
        self.failed[to] = self.schedule.num_steps
        if chain is not None and inpaint is not None and self.inpaint is None:
            nothing = torch.zeros(self.shape, device=self.device)
            self.inpaint = Inpainting(nothing.bool(), nothing)
        if chain is None and (inpaint is None) != (self.inpaint is None):
            raise ValueError("chains are made with inpainting or without; make others")
        if self.inpaint is not None and inpaint is not self.inpaint:
            self.inpaint.mask[to] = False if inpaint is None else inpaint.mask
            self.inpaint.values[to] = 0.0 if inpaint is None else inpaint.values.to(self.inpaint.values)

    def call(self, rows: Tensor, k: Tensor, chain: Tensor) -> Tensor:
        """One network call: the prediction (N, Tp, Da) at rows of that shape, steps k: (N,), chains chain: (N,).

        Raises:
            ValueError: the network's output has another shape than its input.
        """
        self.clock.lap("draft")
        prediction = self.denoise(rows, self.schedule.on(self.device).timesteps[k], chain)
        self.clock.lap("network")
        if prediction.shape != rows.shape:
            raise ValueError(f"denoise returned {tuple(prediction.shape)} for rows {tuple(rows.shape)}")
        return prediction

    def predict_x0(self, x: Tensor, k: Tensor, chain: Tensor, counts: Tensor | None = None) -> Tensor:
        """m at rows x: (N, D), by one `call`. (N, D) float32; 0 at inpainted coordinates.

        counts: (N,) bool, rows whose value matters; None: all. `check` raises if one of them was not finite.
        """
        rows = self._shown(x, chain)
        m = self.schedule.predict_x0(self.call(rows, k, chain), rows, k)
        self._look(m, k, chain, counts)
        return self._hidden(m, chain).reshape(x.shape)

    def predict_clean(self, x: Tensor, k: Tensor, chain: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x0, clipped as the scheduler clips it, and unclipped; arguments and shapes as in `predict_x0`."""
        rows = self._shown(x, chain)
        x0, raw = self.schedule.clean(self.call(rows, k, chain), rows, k)
        self._look(raw, k, chain, counts)
        return self._hidden(x0, chain).reshape(x.shape), self._hidden(raw, chain).reshape(x.shape)

    def _look(self, m: Tensor, k: Tensor, chain: Tensor, counts: Tensor | None) -> None:
        """Note the rows that are not finite."""
        bad = ~torch.isfinite(m.flatten(1).sum(1))  # NaN and infinity are in the sum as well
        bad = bad if counts is None else bad & counts
        self.failed.scatter_reduce_(0, chain, torch.where(bad, k, self.schedule.num_steps), "amin")

    def predict_rows(self, turn: Turn, x: Tensor, steps: Tensor, valid: Tensor, otherwise: Tensor) -> Tensor:
        """m (b, N, D) at the rows of a round, by one call.

        x: (b, N, D); steps: (b, N); valid: (b, N) bool. Padding is evaluated where shapes are fixed (`Turn.dense`);
        elsewhere it takes what is in `otherwise`: (b, N, D).
        """
        chain = turn.chain[:, None].expand_as(steps)
        if turn.dense or not turn.padded:
            counts = valid.flatten() if turn.padded else None
            return self.predict_x0(x.flatten(0, 1), steps.flatten(), chain.flatten(), counts).view(x.shape)
        m = otherwise.clone()
        m[valid] = self.predict_x0(x[valid], steps[valid], chain[valid])
        return m

    @property
    def broken(self) -> Tensor:
        """() long, chains for which the network has returned NaN or infinite values since they began."""
        return (self.failed < self.schedule.num_steps).sum()

    def check(self, chain: Tensor | slice = slice(None)) -> None:
        """Raise FloatingPointError if the network has returned NaN or infinite values since `begin`, for any chain or
        one of these."""
        first = int(self.failed[chain].min())  # what follows may be its doing
        if first < self.schedule.num_steps:
            raise FloatingPointError(
                f"denoise returned NaN or infinite values, first at timestep {int(self.schedule.timesteps[first])}"
            )

    def draft_x0(self, window: Window, x: Tensor, steps: Tensor) -> Tensor:
        """The draft network's x0 at states x: (b, n, D), at steps: (b, n), of a window's chains. (b, n, D) float32.

        Of a whole window's states padding is left out where shapes need not be fixed: it gets 0.
        """
        if self.draft is None:
            raise ValueError("no draft network was given")
        chain = window.chain[:, None].expand_as(steps)
        self.draft_calls.index_add_(0, window.chain, (window.sizes > 0).long())
        if window.turn.dense or not window.turn.padded or steps.shape != window.valid.shape:
            return self._small(x.flatten(0, 1), steps.flatten(), chain.flatten()).view(x.shape)
        m = torch.zeros_like(x)
        m[window.valid] = self._small(x[window.valid], steps[window.valid], chain[window.valid])
        return m

    def _small(self, x: Tensor, k: Tensor, chain: Tensor) -> Tensor:
        """The draft network's x0 (N, D) at rows x: (N, D)."""
        assert self.draft is not None
        rows = self._shown(x, chain)
        m = self.draft(rows, self.schedule.on(self.device).timesteps[k], chain).to(torch.float32)
        if m.shape != rows.shape:
            raise ValueError(f"the draft network returned {tuple(m.shape)} for rows {tuple(rows.shape)}")
        # A draft is free to be anything finite; what is not must not get into the states.
        return self._hidden(m.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), chain).reshape(x.shape)

    def _shown(self, x: Tensor, chain: Tensor) -> Tensor:
        rows = x.reshape(-1, *self.shape[1:])
        return rows if self.inpaint is None else self.inpaint.of(chain).show(rows)

    def _hidden(self, m: Tensor, chain: Tensor) -> Tensor:
        return m if self.inpaint is None else self.inpaint.of(chain).hide(m)
