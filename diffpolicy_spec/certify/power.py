"""What the battery would have seen: the same battery on sequential samples, one half of them deliberately falsified."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.seeds import hashed_generator

from .battery import sees
from .modes import find_modes

__all__ = ["EFFECTS", "GRID", "Power", "measure_false_alarms", "measure_power"]

GRID = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Effect sizes that are tried."""

ENOUGH = 0.9
"""Share of repeated splits in which an effect must be seen."""


def shift(chunks: Tensor, size: float) -> Tensor:
    """Every coordinate moved by `size` of its standard deviation within the observation. chunks: (O, n, Tp, Da)."""
    return chunks + size * chunks.std(1, keepdim=True)


def scale(chunks: Tensor, size: float) -> Tensor:
    """Deviations from the observation's mean chunk multiplied by 1 + size."""
    mean = chunks.mean(1, keepdim=True)
    return mean + (1 + size) * (chunks - mean)


def reweight(chunks: Tensor, size: float) -> Tensor:
    """A share `size` of all chunks moved from the most frequent mode to the next: by the distance of their centres.

    Modes are those of `find_modes`; where the most frequent one has fewer chunks than that, all of it moves.
    """
    out = chunks.clone()
    for o, observation in enumerate(chunks):
        clusters = find_modes(observation.flatten(1))
        counts = clusters.bincount(minlength=2)
        first, second = counts.argsort(descending=True)[:2].tolist()
        if counts[second] == 0:  # chunks that are all the same have one mode only
            continue
        members = (clusters == first).nonzero().flatten()
        step = observation[clusters == second].mean(0) - observation[members].mean(0)
        out[o, members[: round(size * len(observation))]] += step
    return out


EFFECTS: dict[str, tuple[Callable[[Tensor, float], Tensor], str]] = {
    "mean shift": (shift, "a shift of every action coordinate by {:g} of its standard deviation"),
    "scale": (scale, "a spread larger by the factor {:g}"),
    "mode weight": (reweight, "{:g} of all chunks moved from one mode to another"),
}
"""By name: what falsifies chunks, and how a size of it is said."""


@dataclass(frozen=True)
class Power:
    """How small an effect the battery sees.

    Attributes:
        effect: its name in EFFECTS.
        size: the smallest size of GRID that was seen in at least 90 % of the splits; None: not even the largest was.
        tried: (size, splits in which it was seen, splits made) in the order tried; splits end early once 90 % is
            out of reach.
    """

    effect: str
    size: float | None
    tried: tuple[tuple[float, int, int], ...]

    @property
    def said(self) -> str:
        """The effect in words."""
        words = EFFECTS[self.effect][1]
        size = GRID[-1] if self.size is None else self.size
        said = words.format(1 + size if self.effect == "scale" else size)
        return f"not even {said}" if self.size is None else said


def measure_power(
    sequential: Tensor,
    conditions: Tensor,
    *,
    alpha: float,
    splits: int = 20,
    seed: int = 0,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> tuple[Power, ...]:
    """Smallest effects seen when half of the chunks (O, 2n, Tp, Da) of the sequential sampler are falsified.

    A split divides the chunks of every observation at random into n + n; the effect is applied to one half and the
    battery compares it with the other. Sizes are searched by bisection: larger ones are taken to be easier to see.
    """
    results = []
    for number, effect in enumerate(progress(EFFECTS)):
        falsify = EFFECTS[effect][0]
        tried: list[tuple[float, int, int]] = []
        low, high = 0, len(GRID)  # the answer's index; len(GRID): none
        while low < high:
            middle = (low + high) // 2
            seen = made = 0
            for split in range(splits):
                one, other = _split(sequential, hashed_generator(seed, number, middle, split))
                seen += sees(one, falsify(other, GRID[middle]), conditions, alpha=alpha)
                made += 1
                if made - seen > (1 - ENOUGH) * splits + 1e-9:
                    break
            tried.append((GRID[middle], seen, made))
            low, high = (low, middle) if made == splits and seen >= ENOUGH * splits - 1e-9 else (middle + 1, high)
        results.append(Power(effect, GRID[low] if low < len(GRID) else None, tuple(tried)))
    return tuple(results)


def measure_false_alarms(
    sequential: Tensor, conditions: Tensor, *, alpha: float, splits: int = 20, seed: int = 0
) -> int:
    """In how many random splits of the sequential chunks into n + n the battery sees a difference that is not there."""
    halves = (_split(sequential, hashed_generator(seed, len(EFFECTS), split)) for split in range(splits))
    return sum(sees(one, other, conditions, alpha=alpha) for one, other in halves)


def _split(chunks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.rand(chunks.shape[:2], generator=generator).argsort(1)
    mixed = chunks[torch.arange(len(chunks))[:, None], order]
    n = chunks.shape[1] // 2
    return mixed[:, :n], mixed[:, n : 2 * n]
