"""K matrices of one form: what every structure can do, and the dense one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffpolicy_spec.window import Window

__all__ = ["Dense", "Matrices"]


@dataclass(frozen=True, eq=False)
class Matrices(ABC):
    """G_0 ... G_{K-1}, each D x D, held as float32 tensors (the fields); rows are inputs: x0 moves by dx @ G_k.

    Attributes:
        name: what the structure is called in settings.
        prefix: begins the names of its tensors in a stored file.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(K, D, D), whatever is held."""

    @abstractmethod
    def multiply(self, rows: Tensor, low: int, high: int) -> Tensor:
        """rows[i, j] @ G_{low + i}. rows: (high - low, b, D) -> the same shape."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError if the tensors do not fit together; the message says what they should be."""

    def apply(self, window: Window, dx: Tensor) -> Tensor:
        """dx @ G_k for each row of a window. dx: (b, N, D) -> (b, N, D).

        One chain's rows are a slice of the steps; the rows of several chains, or of one whose step the host does not
        know, are laid out by step, so that the matrices are read in place and never copied per row.
        """
        (b, n, D), K = dx.shape, self.shape[0]
        turn = window.turn
        low, high = (0, K) if turn.low is None or turn.high is None else (turn.low, turn.high)
        if b == 1 and high - low == n and turn.low is not None:
            return self.multiply(dx.transpose(0, 1), low, high).transpose(0, 1)
        rows = high - low
        row, chain = window.steps - low, torch.arange(b, device=dx.device)[:, None].expand(b, n)
        by_step = dx.new_zeros(rows + 1, b, D)
        by_step[torch.where(window.valid, row, rows), chain] = dx  # padding goes to a row of its own
        return self.multiply(by_step[:rows], low, high)[row.clamp(max=rows - 1), chain]

    def explicit(self) -> Tensor:
        """(K, D, D), written out: for looking at, K D^2 numbers."""
        K, D, _ = self.shape
        eye = torch.eye(D, device=self.tensors()[0].device)
        return torch.cat([self.multiply(eye[None], k, k + 1) for k in range(K)])

    def tensors(self) -> list[Tensor]:
        """What is held, in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(*(value.to(device) for value in self.tensors()))

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored: float16."""
        names = [self.prefix + field.name for field in fields(self)]
        return dict(zip(names, (value.to(torch.float16) for value in self.tensors()), strict=True))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """Read `state_dict`.

        Raises:
            ValueError: tensors are missing, do not fit together, or are not finite.
        """
        names = [cls.prefix + field.name for field in fields(cls)]
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"{cls.name} gains lack {', '.join(missing)}: calibrate again")
        made = cls(*(state[name].to(torch.float32) for name in names))
        made.check()
        for name, value in zip(names, made.tensors(), strict=True):
            if not torch.isfinite(value).all():
                raise ValueError(f"gains have NaN or infinite values in {name}: calibrate again")
        return made

    def _shapes(self) -> str:
        """The fields with their shapes, for messages."""
        return ", ".join(f"{field.name} {tuple(getattr(self, field.name).shape)}" for field in fields(self))


@dataclass(frozen=True, eq=False)
class Dense(Matrices):
    """Every entry.

    Attributes:
        G: (K, D, D).
    """

    name: ClassVar[str] = "dense"
    prefix: ClassVar[str] = "gains."

    G: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        K, D, _ = self.G.shape
        return K, D, D

    def multiply(self, rows: Tensor, low: int, high: int) -> Tensor:
        return torch.bmm(rows, self.G[low:high])

    def explicit(self) -> Tensor:
        return self.G

    def check(self) -> None:
        if self.G.dim() != 3 or self.G.shape[1] != self.G.shape[2]:
            raise ValueError(f"gains must be G (K, D, D), got {self._shapes()}: calibrate again")

    @staticmethod
    def bytes_stored(K: int, D: int) -> int:
        """Size of a file."""
        return 2 * K * D**2
