"""All the randomness of a chain, drawn beforehand, so that every sampler can be run on the same draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule

__all__ = ["Draws", "Generator", "Noise", "NoiseTable", "as_noise", "draw_noise"]

Generator = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, one for each chain, or torch's default."""


@dataclass(frozen=True)
class Noise:
    """The draws of B chains of K steps.

    Attributes:
        start: (B, Tp, Da) x_0 ~ N(0, I), the noisiest state.
        steps: (K, B, Tp, Da) xi_k ~ N(0, I), the innovation of step k.
        uniforms: (K, B) U_k ~ Uniform[0, 1), the acceptance draw of step k (speculative samplers only).
    """

    start: Tensor
    steps: Tensor
    uniforms: Tensor


def draw_noise(
    shape: tuple[int, int, int],
    schedule: Schedule,
    generator: Generator = None,
    device: torch.device | str = "cpu",
) -> Noise:
    """Draw the noise of `shape` = (B, Tp, Da) chains.

    Args:
        generator: one generator for the batch, or B of them: then a chain's draws depend on its own generator only,
            whatever batch it is in. Numbers are drawn on the generator's device and moved to `device`.

    Raises:
        ValueError: the number of generators is not B.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _draw(shape, schedule.num_steps, generator, device)
    if len(generator) != shape[0]:
        raise ValueError(f"expected one generator per chain, {shape[0]}, got {len(generator)}")
    parts = [_draw((1, *shape[1:]), schedule.num_steps, g, device) for g in generator]
    return Noise(
        start=torch.cat([p.start for p in parts]),
        steps=torch.cat([p.steps for p in parts], dim=1),
        uniforms=torch.cat([p.uniforms for p in parts], dim=1),
    )


class NoiseTable:
    """The noise of chains under way, xi: (B, K + 1, D) and u: (B, K + 1); the last step is a bin for padding.

    What a verifier has spent is replaced by noise that was drawn for it before the round.
    """

    def __init__(self, batch: int, num_steps: int, size: int, device: torch.device) -> None:
        self.xi = torch.zeros(batch, num_steps + 1, size, device=device)
        self.u = torch.zeros(batch, num_steps + 1, device=device)
        self._fresh = Draws(batch, size, device)

    def load(self, noise: Noise, generator: Generator, known: Tensor | None, chain: Tensor | None = None) -> None:
        """Begin with this noise. known: (B, D) bool, coordinates that are not noised, or None; chain: see `Draws`."""
        to: Tensor | slice = slice(None) if chain is None else chain
        self.xi[to, :-1] = noise.steps.flatten(2).transpose(0, 1)
        self.u[to, :-1] = noise.uniforms.T
        self._fresh.load(generator, known, chain)

    def prepare(self, chain: Tensor, rows: int, counts: Tensor) -> None:
        """Draw fresh noise for at most `rows` steps of chains: (b,), each as many as counts: (b,)."""
        self._fresh.draw(chain, rows, counts)

    def redraw(self, chain: Tensor, slots: Tensor, spent: Tensor) -> None:
        """Replace the noise of steps slots: (b, N) where spent: (b, N) says so."""
        rows, n = chain[:, None], slots.shape[1]
        xi, u = self._fresh.xi[chain, :n], self._fresh.u[chain, :n]
        self.xi[rows, slots] = torch.where(spent.unsqueeze(-1), xi, self.xi[rows, slots])
        self.u[rows, slots] = torch.where(spent, u, self.u[rows, slots])


class Draws:
    """Noise drawn on the way, xi: (B, N, D) and u: (B, N), in tensors that stay where they are while N does not grow.

    With one generator for each chain, a chain's draws depend on its own generator and its own counts only.
    """

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.xi = torch.zeros(batch, 0, size, device=device)
        self.u = torch.zeros(batch, 0, device=device)
        self._generator: Generator = None

    def reserve(self, rows: int) -> None:
        """Make room for this many rows of a chain."""
        B, N, D = self.xi.shape
        if rows > N:
            self.xi, self.u = self.xi.new_zeros(B, rows, D), self.u.new_zeros(B, rows)

    def load(self, generator: Generator, known: Tensor | None, chain: Tensor | None = None) -> None:
        """Draw from here on with `generator`; 0 at known: (B, D) bool coordinates.

        chain: (b,) long, only these chains, the others draw as before; None: all.

        Raises:
            ValueError: some chains begin by themselves, and there is not a generator for each of them.
        """
        self._known = known
        if chain is None:
            self._generator = generator
            return
        if generator is None or isinstance(generator, torch.Generator) or len(generator) != len(chain):
            raise ValueError(f"chains that begin while others are under way need a generator each: {len(chain)}")
        own = dict(zip(chain.tolist(), generator, strict=True))
        before = self._generator if isinstance(self._generator, list) else [torch.Generator()] * len(self.xi)
        self._generator = [own.get(c, g) for c, g in enumerate(before)]

    def draw(self, chain: Tensor, rows: int, counts: Tensor | None = None) -> None:
        """Fill the first `rows` rows of chains: (b,), or only as many as counts: (b,) says for each."""
        self.reserve(rows)
        D, device, generator = self.xi.shape[-1], self.xi.device, self._generator
        if generator is None or isinstance(generator, torch.Generator):
            source = device if generator is None else generator.device
            xi = torch.randn((len(chain), rows, D), generator=generator, device=source).to(device)
            u = torch.rand((len(chain), rows), generator=generator, device=source).to(device)
            self.xi[chain, :rows], self.u[chain, :rows] = self._free(xi, chain), u
            return
        numbers = [rows] * len(chain) if counts is None else counts.tolist()
        for c, n in zip(chain.tolist(), numbers, strict=True):
            g = generator[c]
            xi = torch.randn((n, D), generator=g, device=g.device).to(device)
            self.xi[c, :n] = xi if self._known is None else xi.masked_fill(self._known[c], 0.0)
            self.u[c, :n] = torch.rand(n, generator=g, device=g.device).to(device)

    def _free(self, xi: Tensor, chain: Tensor) -> Tensor:
        return xi if self._known is None else xi.masked_fill(self._known[chain].unsqueeze(1), 0.0)


def as_noise(noise: Noise | Tensor, schedule: Schedule, generator: Generator = None) -> Noise:
    """Complete and check what a sampler was given: a whole `Noise`, or only its start (B, Tp, Da).

    Raises:
        ValueError: shapes do not fit the schedule, or the start is not finite.
    """
    if isinstance(noise, Tensor):
        if noise.dim() != 3:
            raise ValueError(f"noise must be (B, Tp, Da), got shape {tuple(noise.shape)}")
        start = noise.to(torch.float32)
        rest = draw_noise((start.shape[0], start.shape[1], start.shape[2]), schedule, generator, start.device)
        noise = Noise(start=start, steps=rest.steps, uniforms=rest.uniforms)
    K, shape = schedule.num_steps, tuple(noise.start.shape)
    if len(shape) != 3 or tuple(noise.steps.shape) != (K, *shape) or tuple(noise.uniforms.shape) != (K, shape[0]):
        raise ValueError(
            f"noise does not fit a schedule of {K} steps: start {shape}, steps {tuple(noise.steps.shape)}, uniforms "
            f"{tuple(noise.uniforms.shape)}; expected (B, Tp, Da), (K, B, Tp, Da), (K, B). Draw it with draw_noise"
        )
    if shape[0] < 1:
        raise ValueError("noise has no chains: B must be at least 1")
    if not (torch.isfinite(noise.start).all() and torch.isfinite(noise.steps).all()):
        raise ValueError("noise has NaN or infinite values")
    return noise


def _draw(
    shape: tuple[int, ...], steps: int, generator: torch.Generator | None, device: torch.device | str
) -> Noise:
    source = device if generator is None else generator.device
    start = torch.randn(shape, generator=generator, device=source)
    xi = torch.randn((steps, *shape), generator=generator, device=source)
    u = torch.rand((steps, shape[0]), generator=generator, device=source)
    return Noise(start=start.to(device), steps=xi.to(device), uniforms=u.to(device))
