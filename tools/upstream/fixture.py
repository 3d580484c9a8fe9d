"""One fixture: what upstream saved and what upstream computed with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Fixture", "allow_torchvision", "versions"]

_LIBRARY: list[Any] = []


def allow_torchvision() -> None:
    """Declare two operators that nobody calls: torchvision's wheel for CUDA wants them beside a torch for CPUs."""
    if not _LIBRARY:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.append(library)


def versions(*packages: str) -> dict[str, str]:
    """Those that are imported from PYTHONPATH come first there, too."""
    return {name: version(name) for name in ("torch", "numpy", *packages)}


@dataclass
class Fixture:
    """Collects a fixture's tensors and facts, and writes them to a folder beside the checkpoint.

    Attributes:
        folder: where it is written; the checkpoint goes to `folder / "checkpoint..."`.
        io: names and tensors for io.safetensors (README.md of the fixtures says what they are).
        meta: facts for meta.json.
    """

    folder: Path
    meta: dict[str, Any]
    io: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, prefix: str, tensors: dict[str, Tensor] | Tensor | None) -> None:
        """`prefix.name` for a dict, `prefix` for a tensor, nothing for None."""
        if isinstance(tensors, dict):
            for name, tensor in tensors.items():
                self.add(f"{prefix}.{name}", tensor)
        elif tensors is not None:
            self.io[prefix] = tensors.detach().clone().contiguous()

    def write(self) -> None:
        """io.safetensors and meta.json.

        Raises:
            AssertionError: something is not finite.
        """
        for name, tensor in self.io.items():
            if not torch.isfinite(tensor.double()).all():
                raise AssertionError(f"{self.folder.name}: {name} is not finite")
        plan, limit = self.io["expected.plan"], self.meta["settings"]["clip_sample_range"]
        self.meta["plan"] = {
            "mean_abs": round(plan.abs().mean().item(), 4),
            "at_the_clip_range": round((plan.abs() > 0.9999 * limit).double().mean().item(), 4),
        }
        save_file(self.io, self.folder / "io.safetensors")
        (self.folder / "meta.json").write_text(json.dumps(self.meta, indent=1) + "\n")
        print(f"{self.folder.name}: {json.dumps(self.meta['plan'])} {self.meta.get('precision')}", flush=True)
