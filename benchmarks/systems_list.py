"""Every system that `systems.py` compares, as its authors publish it or as we do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffpolicy_spec import SamplerConfig

__all__ = ["REFERENCE", "System", "systems"]

REFERENCE = "DDPM-100"

PLAIN: dict[str, Any] = {"gain": False, "corrector": False}
CORRECTED: dict[str, Any] = {"drafter": "picard", "memory": 1, "gain": False, "corrector": True, "sweeps": 2}

# name -> (family, options)
SPECULATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "ASD, two-call": ("ASD", {"drafter": "parent"}),
    "ASD, two-call, block": ("ASD", {"drafter": "parent", "verifier": "block"}),
    "DB, frozen drift": ("DB, frozen drift", {"drafter": "drift"}),
    "DB, frozen drift, re-use": ("DB, frozen drift", {"drafter": "drift_nearest"}),
    "DB, draft model": ("DB, draft model", {"drafter": "model"}),
    "DB, draft model, block": ("DB, draft model", {"drafter": "model", "verifier": "block"}),
    "frozen x0, fused (nearest)": ("frozen x0, fused", {"drafter": "nearest"}),
    "BV, Free Drafter (nearest, block)": ("frozen x0, fused", {"drafter": "nearest", "verifier": "block"}),
    "Picard": ("Picard (ours)", {"drafter": "picard", "memory": 0, **PLAIN}),
    "Picard + secant": ("Picard (ours)", {"drafter": "picard", "memory": 3, **PLAIN}),
    "Picard + secant + gain": ("Picard (ours)", {"drafter": "picard", "memory": 1, **PLAIN, "gain": True}),
    "Picard + corrector": ("corrector (ours)", CORRECTED),
    "Picard + corrector, 4 sweeps": ("corrector (ours)", {**CORRECTED, "sweeps": 4, "first_sweeps": 8}),
    "Picard + corrector, block": ("corrector (ours)", {**CORRECTED, "verifier": "block"}),
}

TREES: dict[str, dict[str, Any]] = {
    "draft tree 2 x 4": {"children": 2, "depth": 4},
    "draft tree 2 x 5": {"children": 2, "depth": 5},
    "draft tree 3 x 3": {"children": 3, "depth": 3},
    "draft tree, 2 then 1 x 7": {"children": [2, *[1] * 7], "depth": 8},
    "draft tree, 2 then 1 x 15": {"children": [2, *[1] * 15], "depth": 16},
}

FEWER = (5, 10, 20, 50)
TOLERANCES = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class System:
    """One line of the tables.

    Attributes:
        name, window: of the line; window None where there is none.
        family: its colour in the picture.
        exact: whether it claims the law of the full DDPM chain.
    """

    name: str
    window: int | str | None
    family: str
    exact: bool
    config: SamplerConfig

    @property
    def label(self) -> str:
        """Name and window."""
        return self.name if self.window is None else f"{self.name}, window {self.window}"


def systems(windows: list[int | str], num_steps: int = 100) -> Iterator[System]:
    """All systems, windowed ones at every window; "all" is the infinite speculation length."""
    yield System(REFERENCE, None, "sequential", True, SamplerConfig("ddpm"))
    for n in FEWER:
        yield System(f"DDPM-{n}", None, "DDPM-n", False, SamplerConfig("ddpm", n))
    for n in FEWER:
        yield System(f"DDIM-{n}", None, "DDIM-n", False, SamplerConfig("ddim", n, 0.0))
    yield System("DDIM-10, eta 1", None, "DDIM-10, eta 1", False, SamplerConfig("ddim", 10, 1.0))
    for window in windows:
        for tolerance in TOLERANCES:
            options = {"window": num_steps if window == "all" else window, "tolerance": tolerance}
            config = SamplerConfig("paradigms", options=options)
            yield System(f"ParaDiGMS, tolerance {tolerance}", window, "ParaDiGMS", False, config)
    for name, tree in TREES.items():
        yield System(name, None, "draft trees", True, SamplerConfig("tree", options=tree))
    for window in windows:
        for name, (family, options) in SPECULATIVE.items():
            yield System(name, window, family, True, SamplerConfig(options={**options, "window": window}))
