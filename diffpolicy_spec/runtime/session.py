"""A sampler kept ready: chains made once and begun again for every chunk, their rounds of fixed shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from diffpolicy_spec.chains import Chains, finish_now, go_round
from diffpolicy_spec.deadline import Deadline, Watch
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.networks import Denoise, Networks
from diffpolicy_spec.noise import Generator, Noise
from diffpolicy_spec.schedule import Schedule
from diffpolicy_spec.stats import Sample
from diffpolicy_spec.window import Turn

from .capture import Captured, Report, capture, compiled, has_conditions, when
from .config import RuntimeConfig

__all__ = ["Session"]

_OPENING, _CHAIN = "opening", "chain"


class Session:
    """Batches of up to B chains of one sampler, on one device.

    A round waits for nothing: it has the chains' next rows padded to one of a few widths, and finished chains idle. The
    host reads one flag a round, which width comes next or that all are done. A sequential sampler is one piece of work
    in all.

    Args:
        make: the sampler's chains for given networks, such as `BoundSampler.chains`.
        denoise, draft: the networks; what they read beside their arguments must stay where it is.
        shape: (B, Tp, Da).
        inpaint: coordinates that are known in the first chunk; None: chunks are not inpainted.
        config: how rounds are run; "eager" means "static" here.

    Raises:
        ValueError: CUDA graphs on a device that has none.
    """

    def __init__(
        self,
        make: Callable[[Networks], Chains],
        denoise: Denoise,
        schedule: Schedule,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        draft: Denoise | None = None,
        inpaint: Inpainting | None = None,
        config: RuntimeConfig,
    ) -> None:
        self._shape, self._device, self._config = shape, device, config
        own = None if inpaint is None else Inpainting(self._fit(inpaint.mask), self._fit(inpaint.values))
        self._chains = make(Networks(denoise, schedule, shape, device, draft=draft, inpaint=own))
        self._widths = self._chains.widths()
        self._captured: Captured | None = None
        self._read = torch.zeros(2, dtype=torch.long, pin_memory=device.type == "cuda")

    @property
    def report(self) -> Report | None:
        """What was made ready, and what that cost; None before the first chunk."""
        return None if self._captured is None else self._captured.report

    def forget(self) -> None:
        """Make everything ready again at the next chunk: something is no longer where it was."""
        self._captured = None

    @torch.no_grad()
    def __call__(
        self,
        noise: Noise,
        *,
        generator: Generator = None,
        warm_start: Tensor | None = None,
        inpaint: Inpainting | None = None,
        deadline: Deadline | None = None,
    ) -> Sample:
        """Draw chunks of n <= B chains; arguments as in `sample_speculative` and `run`, the noise complete and checked.

        With a deadline, a sequential sampler is one piece of work only if all of it will be in time.
        """
        n, chains = noise.start.shape[0], self._chains
        begin = partial(
            chains.begin, self._fit_noise(noise), live=n,
            warm_start=None if warm_start is None else self._fit(warm_start),
            inpaint=None if inpaint is None else Inpainting(self._fit(inpaint.mask), self._fit(inpaint.values)),
        )  # fmt: skip
        if self._captured is None:
            self._captured = self._make(partial(begin, generator=torch.Generator(self._device).manual_seed(0)))
        chains.networks.clock.start()
        begin(generator=self._fit_generators(generator))
        self._run(self._captured, None if deadline is None else Watch(deadline, self._device))
        return chains.sample(n)

    def _run(self, captured: Captured, watch: Watch | None) -> None:
        chains = self._chains
        if chains.lockstep:
            if watch is None or watch.fits(chains.schedule.num_steps):
                captured.run(_CHAIN)
            else:
                go_round(chains, watch)
            return
        if self._finished(watch, _OPENING):
            return
        chains.prepare(Turn(chains.everyone, self._first))
        captured.run(_OPENING)
        while rows := self._next():
            width = next(w for w in self._widths if w >= rows)
            if self._finished(watch, width):
                return
            chains.prepare(Turn(chains.everyone, width))
            captured.run(width)

    def _finished(self, watch: Watch | None, key: Hashable) -> bool:
        """Finish the chains if the piece of work with this key would make them miss the deadline."""
        if watch is None:
            return False
        low = int(self._chains.k.min())
        if not watch.late(self._chains.schedule.num_steps - low, key):
            return False
        finish_now(self._chains, watch, low)
        return True

    def _next(self) -> int:
        """Rows of any chain's next round; the host waits for the device here and nowhere else."""
        self._read.copy_(self._chains.flags, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        rows, bad = self._read.tolist()
        self._chains.networks.clock.lap("sync")
        if bad:
            self._chains.networks.check()
        return rows

    def _make(self, begin: Callable[[], None]) -> Captured:
        chains, work = self._chains, dict[Hashable, Callable[[], None]]()
        begin()
        self._first = int(chains.rows.max())
        chains.prepare(Turn(chains.everyone, self._widths[-1]))  # room for the widest
        if chains.lockstep:
            if self._config.compiles:  # the call alone: K of them in one piece would take hours
                chains.networks.denoise = compiled(chains.networks.denoise)
            work[_CHAIN] = self._whole_chain
        else:
            work = {width: self._ready(partial(self._round, Turn(chains.everyone, width))) for width in self._widths}
            first = Turn(chains.everyone, self._first, opening=len(chains.everyone))
            opening = self._ready(partial(self._round, first))
            work[_OPENING] = partial(self._several, opening, work[self._widths[-1]], self._rounds())

        def again(key: Hashable) -> None:
            begin()
            if isinstance(key, int):
                chains.rows.clamp_(max=key)  # no more than the piece has room for

        config, clock = self._config, chains.networks.clock
        clock.running = False
        made = capture(work, again, self._device, warm=config.compiles, graphs=config.captures)
        clock.running = not (config.compiles or made.report.graphs)
        return made

    def _ready(self, work: Callable[[], None]) -> Callable[[], None]:
        return compiled(work) if self._config.compiles else work

    def _rounds(self) -> int:
        """Rounds that go into one piece of work."""
        rounds = self._config.rounds
        if rounds > 1 and self._config.captures and not has_conditions():
            warnings.warn(
                f"rounds={rounds}: torch {torch.__version__} cannot put conditions into CUDA graphs; every round is a "
                f"graph of its own",
                stacklevel=2,
            )
            return 1
        return 1 if self._chains.draws else rounds

    def _several(self, opening: Callable[[], None], further: Callable[[], None], rounds: int) -> None:
        opening()
        for _ in range(rounds - 1):
            when(self._chains.flags[0] > 0, further)

    def _round(self, turn: Turn) -> None:
        self._chains.round(turn)
        self._chains.note()

    def _whole_chain(self) -> None:
        for k in range(self._chains.schedule.num_steps):
            self._chains.round(Turn(self._chains.everyone, 1, k, k + 1, padded=False))

    def _fit(self, x: Tensor, dim: int = 0) -> Tensor:
        """x with zeros for chains up to B along a dimension, on the device."""
        missing = list(x.shape)
        missing[dim] = self._shape[0] - x.shape[dim]
        return (torch.cat([x, x.new_zeros(missing)], dim=dim) if missing[dim] else x).to(self._device)

    def _fit_noise(self, noise: Noise) -> Noise:
        return Noise(self._fit(noise.start), self._fit(noise.steps, 1), self._fit(noise.uniforms, 1))

    def _fit_generators(self, generator: Generator) -> Generator:
        if generator is None or isinstance(generator, torch.Generator):
            return generator
        return [*generator, *(torch.Generator() for _ in range(self._shape[0] - len(generator)))]
