"""Checkpoints that upstream's own code saved, with what it computed: tests/fixtures/upstream/README.md."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent / "fixtures" / "upstream"
NAMES = tuple(sorted(p.parent.name for p in ROOT.glob("*/meta.json")))
"""Every fixture there is. They begin with dp_, lerobot_ or robomimic_."""


def named(prefix: str) -> tuple[str, ...]:
    """The fixtures whose names begin so."""
    return tuple(name for name in NAMES if name.startswith(prefix))


def meta(name: str) -> dict[str, Any]:
    """What stands in the fixture's meta.json."""
    return json.loads((ROOT / name / "meta.json").read_text())


def fixture(name: str, folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Unpack a fixture below `folder`: the checkpoint's path, the tensors of io.safetensors, meta.json."""
    target = folder / name
    for path in sorted((ROOT / name).rglob("*")):
        out = target / path.relative_to(ROOT / name)
        if path.is_dir() or path.name == "meta.json":
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".xz":
            with lzma.open(path) as packed, out.with_suffix("").open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        else:
            shutil.copyfile(path, out)
    facts = meta(name)
    return target / facts["checkpoint"], load_file(target / "io.safetensors"), facts
