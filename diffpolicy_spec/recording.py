"""Counting what the samplers do: rounds are noted as they happen and added up once at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .inpainting import Inpainting
from .schedule import Schedule
from .stats import SampleStats, TimeSplit
from .window import Window

__all__ = ["Denoise", "Recorder"]

# denoise(x: (N, Tp, Da), t: (N,) long, chain: (N,) long) -> (N, Tp, Da), the network's prediction.
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


class Recorder:
    """Calls the networks, keeps the clock, and adds up rounds for `SampleStats`."""

    def __init__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        inpaint: Inpainting | None = None,
        draft: Denoise | None = None,
    ) -> None:
        self._denoise, self._schedule, self._shape, self._device = denoise, schedule, shape, device
        self._inpaint, self._draft = inpaint, draft
        self._draft_calls = torch.zeros(shape[0], dtype=torch.long, device=device)
        self._seconds = {"network": 0.0, "draft": 0.0, "verify": 0.0}
        self._rounds: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        self._begin = self._mark = self._now()

    def call(self, rows: Tensor, k: Tensor, chain: Tensor) -> Tensor:
        """One network call: the prediction (N, Tp, Da) at rows of that shape, steps k: (N,), chains chain: (N,).

        Raises:
            ValueError: the network's output has another shape than its input.
        """
        self._lap("draft")
        prediction = self._denoise(rows, self._schedule.on(self._device).timesteps[k], chain)
        self._lap("network")
        if prediction.shape != rows.shape:
            raise ValueError(f"denoise returned {tuple(prediction.shape)} for rows {tuple(rows.shape)}")
        return prediction

    def predict_x0(self, x: Tensor, k: Tensor, chain: Tensor) -> Tensor:
        """m at rows x: (N, D), by one `call`. (N, D) float32; 0 at inpainted coordinates.

        Raises:
            FloatingPointError: the network returned NaN or infinite values.
        """
        rows = self._shown(x, chain)
        m = self._schedule.predict_x0(self.call(rows, k, chain), rows, k)
        if not torch.isfinite(m).all():
            bad = self._schedule.timesteps.to(k.device)[k[~torch.isfinite(m).flatten(1).all(1)]].unique().tolist()
            raise FloatingPointError(f"denoise returned NaN or infinite values at timesteps {bad}")
        return self._hidden(m, chain).reshape(x.shape)

    def draft_x0(self, window: Window, x: Tensor, steps: Tensor) -> Tensor:
        """The draft network's x0 at states x: (b, n, D), at steps: (b, n), of a window's chains. (b, n, D) float32."""
        if self._draft is None:
            raise ValueError("no draft network was given")
        chain = window.chain[:, None].expand_as(steps).flatten()
        rows = self._shown(x.flatten(0, 1), chain)
        m = self._draft(rows, self._schedule.on(self._device).timesteps[steps.flatten()], chain).to(torch.float32)
        if m.shape != rows.shape:
            raise ValueError(f"the draft network returned {tuple(m.shape)} for rows {tuple(rows.shape)}")
        self._draft_calls[window.chain] += 1
        # A draft is free to be anything finite; what is not must not get into the states.
        return self._hidden(m.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), chain).reshape(x.shape)

    def _shown(self, x: Tensor, chain: Tensor) -> Tensor:
        rows = x.reshape(-1, *self._shape[1:])
        return rows if self._inpaint is None else self._inpaint.of(chain).show(rows)

    def _hidden(self, m: Tensor, chain: Tensor) -> Tensor:
        return m if self._inpaint is None else self._inpaint.of(chain).hide(m)

    def round(self, chain: Tensor, start: Tensor, rows: Tensor, accepted: Tensor, rejected: Tensor) -> None:
        """Note a round: per chain its first step, rows evaluated, drafted steps accepted, whether one was rejected."""
        self._rounds.append((chain, start, rows, accepted, rejected))
        self._lap("verify")

    def stats(self, drafts: bool = True) -> SampleStats:
        """Add up the rounds. `drafts=False`: the rounds drafted nothing (sequential samplers)."""
        total = self._now() - self._begin
        chain, start, rows, accepted, rejected = (torch.cat(part) for part in zip(*self._rounds, strict=True))
        B, K = self._shape[0], self._schedule.num_steps
        ones = torch.ones_like(chain)

        def per_chain(values: Tensor) -> Tensor:
            return torch.zeros(B, dtype=torch.long, device=chain.device).index_add_(0, chain, values.long())

        lengths = torch.zeros(B, K + 1, dtype=torch.long, device=chain.device)
        if drafts:
            lengths.index_put_((chain, accepted), ones, accumulate=True)
        # Accepted steps are start ... start + accepted - 1: mark both ends and add up.
        edges = torch.zeros(B, K + 1, dtype=torch.long, device=chain.device)
        edges.index_put_((chain, start), ones, accumulate=True)
        edges.index_put_((chain, start + accepted), -ones, accumulate=True)
        accepted_at = edges.cumsum(1)[:, :K]
        tested_at = accepted_at.clone()
        tested_at.index_put_((chain, (start + accepted).clamp(max=K - 1)), rejected.long(), accumulate=True)
        return SampleStats(
            timesteps=self._schedule.timesteps.clone(), calls=per_chain(ones), evaluations=per_chain(rows),
            drafted=per_chain(rows - 1) if drafts else per_chain(torch.zeros_like(rows)), accepted=per_chain(accepted),
            rejected=per_chain(rejected), draft_calls=self._draft_calls,
            accepted_lengths=lengths, tested_at=tested_at, accepted_at=accepted_at,
            time=TimeSplit(total=total, **(self._seconds if drafts else {"network": self._seconds["network"]})),
        )  # fmt: skip

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _lap(self, part: str) -> None:
        now = self._now()
        self._seconds[part] += now - self._mark
        self._mark = now
