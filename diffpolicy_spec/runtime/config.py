"""How a policy's networks and rounds are run, in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["MODES", "RuntimeConfig"]

MODES = ("eager", "static", "compiled", "graphs", "compiled_graphs")
"""Ways to run a round, see `RuntimeConfig.mode`."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class RuntimeConfig:
    """How rounds are run. None of it changes the law, but for `dtype`: then the law is the rounded network's.

    Attributes:
        mode: "eager": kernels one by one, rounds as wide as they need to be. "static": rounds padded to a few widths
            and batches to a few sizes, and nothing but one flag read a round; "compiled": these by torch.compile (a
            minute a shape on a CPU); "graphs": these as CUDA graphs; "compiled_graphs": both.
        rounds: so many rounds of a chunk are one piece of work, run under conditions that the device looks at: with
            graphs, one launch for them all. Rounds that are left are pieces of their own.
        dtype: what the denoiser computes in ("float32", "bfloat16", "float16"); None: as it was loaded. States stay
            float32.
        devices: rows of a call are shared out over copies of the denoiser on these, the first being where the policy
            is, from as many rows on as that is measured to be quicker. Eager only. Empty: the policy's device.
        threads: of torch on a CPU, for the whole process; None: as they are.

    Raises:
        ValueError: an unknown mode or dtype, rounds or threads below 1, or several devices in another mode than eager.
    """

    mode: str = "eager"
    rounds: int = 1
    dtype: str | None = None
    devices: tuple[str, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))  # a config file gives a list
        if self.devices and self.mode != "eager":
            raise ValueError(f"devices={list(self.devices)} needs mode=eager: a call that spans devices is no graph")
        if self.mode not in MODES:
            raise ValueError(f"unknown runtime mode {self.mode!r}; known: {', '.join(MODES)}")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ValueError(f"unknown runtime dtype {self.dtype!r}; known: {', '.join(_DTYPES)}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """`dtype` as torch calls it."""
        return None if self.dtype is None else _DTYPES[self.dtype]

    @property
    def compiles(self) -> bool:
        """Whether rounds go through torch.compile."""
        return self.mode in ("compiled", "compiled_graphs")

    @property
    def captures(self) -> bool:
        """Whether rounds are CUDA graphs."""
        return self.mode in ("graphs", "compiled_graphs")
