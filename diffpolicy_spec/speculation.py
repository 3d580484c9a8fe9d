"""Speculation: a round drafts the states of a window, evaluates them in one call, verifies them, and corrects one."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import Chains
from .drafting import Drafter, Picard, Running
from .networks import Networks
from .noise import Generator, Noise, NoiseTable
from .schedule import Schedule, ScheduleError
from .verification import Verifier, verify_steps
from .window import DEFAULT_WINDOW, Draft, Turn, WindowSize, make_window, widths_to, window_sizes

__all__ = ["Speculation", "check_speculative", "plan_of"]


def check_speculative(schedule: Schedule) -> None:
    """Raise ScheduleError if the chain has steps that speculation cannot couple."""
    if bool((schedule.sigma[:-1] <= 0).any()):
        raise ScheduleError(
            "speculation is exact only where every step but the last adds noise; this schedule has deterministic "
            "steps (DDIM with eta = 0): use sample_ddim, or eta > 0"
        )


class Speculation(Chains):
    """Chains that speculate; see `sample_speculative`.

    The rows of a round may be fewer than the window says. That is exact whatever decides on it, as long as it is not
    the noise of steps that are not committed yet.

    Raises:
        ScheduleError: a step before the last has no noise.
        ValueError: the window does not fit, or a draft network is missing.
    """

    narrows = True

    def __init__(
        self,
        networks: Networks,
        *,
        drafter: Drafter | None = None,
        verifier: Verifier = verify_steps,
        window: WindowSize = DEFAULT_WINDOW,
    ) -> None:
        super().__init__(networks)
        check_speculative(self.schedule)
        self._verify, (B, D), K = verifier, self.x.shape, self.schedule.num_steps
        self._window = window_sizes(window, K, networks.device)
        self._noise = NoiseTable(B, K, D, networks.device)
        self.draws = verifier is not verify_steps  # which keeps its noises
        self._drafter: Drafter = drafter or Picard()
        self._running: Running | None = None

    def load(
        self, noise: Noise, generator: Generator, warm_start: Tensor | None, chain: Tensor | None
    ) -> None:  # fmt: skip
        self._noise.load(noise, generator, self.networks.known, chain)
        plan = plan_of(warm_start, noise.start, self.networks, chain)
        if self._running is not None:
            self._running.begin(plan, self.everyone if chain is None else chain)
            return
        small = None if self.networks.draft is None else self.networks.draft_x0
        everyones = plan if chain is None else torch.zeros_like(self.x).index_copy_(0, chain, plan)
        self._running = self._drafter.start(self.tables, everyones, small)

    def sizes(self, chain: Tensor, k: Tensor) -> Tensor:
        assert self._running is not None
        return torch.minimum(self._running.sizes(chain, self._window[k]), self.schedule.num_steps - k)

    def widths(self) -> list[int]:
        return widths_to(min(int(self._window.max()), self.schedule.num_steps))

    def prepare(self, turn: Turn) -> None:
        if self.draws:
            self._noise.prepare(turn.chain, turn.rows, self.rows[turn.chain])

    def round(self, turn: Turn) -> None:
        assert self._running is not None
        chain, K = turn.chain, self.schedule.num_steps
        at, x = self.k[chain], self.x[chain]
        w = make_window(turn, at, self.rows[chain], K)
        rows, steps = chain[:, None], w.steps
        xi, u = self._noise.xi[rows, steps], self._noise.u[rows, steps]
        drafted = self._running.draft(w, x, xi)
        if self.networks.known is not None:
            # A gain spreads what it moves over all coordinates: a test must not see those given.
            pinned = self.networks.known[chain].unsqueeze(1)
            drafted = Draft(m=drafted.m.masked_fill(pinned, 0.0), x=drafted.x.masked_fill(pinned, 0.0))
        m = self.networks.predict_rows(turn, drafted.x, steps, w.valid, drafted.m)
        outcome = self._verify(self.tables, w, drafted, m, xi, u)
        if outcome.spent is not None:
            self._noise.redraw(chain, w.slots(K), outcome.spent)
        self._running.observe(w, drafted, m, outcome)
        self.x[chain] = torch.where((w.sizes == 0)[:, None], x, outcome.x)
        self.advance(chain, at, w.sizes, outcome.accepted, outcome.rejected)


def plan_of(warm_start: Tensor | None, start: Tensor, networks: Networks, chain: Tensor | None = None) -> Tensor:
    """(b, D) x0 for the first draft: the warm start, or 0, the middle of the normalised range.

    chain: (b,) long, the chains it is for; None: all.

    Raises:
        ValueError: a warm start of another shape than the noise's start: (b, Tp, Da).
    """
    if warm_start is None:
        return torch.zeros_like(start).flatten(1)
    if warm_start.shape != start.shape:
        raise ValueError(f"warm_start must have the noise's shape {tuple(start.shape)}, got {tuple(warm_start.shape)}")
    plan = warm_start.to(start).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if networks.inpaint is not None:
        plan = (networks.inpaint if chain is None else networks.inpaint.of(chain)).hide(plan)
    return plan.flatten(1)
