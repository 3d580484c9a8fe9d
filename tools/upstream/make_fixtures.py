"""Make tests/fixtures/upstream anew: UPSTREAM=DIR DIR/venv/bin/python tools/upstream/make_fixtures.py [name ...]

DIR is what setup.sh made. Each family of policies runs in a process of its own, with the releases its project pins.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "tests" / "fixtures" / "upstream"

DIFFUSION_POLICY = ("diffusers-0.11.1", "diffusion_policy", "robomimic-0.2.0")
FAMILIES: dict[str, tuple[str, ...]] = {
    "make_dp_lowdim.py": DIFFUSION_POLICY,
    "make_dp_image.py": DIFFUSION_POLICY,
    "make_lerobot.py": (),
    "make_lerobot_old.py": ("lerobot-0.3.2",),
    "make_robomimic.py": ("diffusers-0.11.1", "robomimic"),
}
"""Program -> folders of DIR that stand on its PYTHONPATH."""


def names_of(program: str) -> list[str]:
    """What a program can make: the keys of its CASES, and those of its PUBLISHED, which begin with "published_"."""
    text = (HERE / program).read_text(encoding="utf-8")
    return re.findall(r'^    "(\w+)": \(', text, flags=re.MULTILINE)


def pack(raw: Path, target: Path) -> int:
    """Compress what is not JSON; meta.json gets size and SHA-256 of every unpacked file. Returns bytes written."""
    if target.exists():
        shutil.rmtree(target)
    files = {}
    for path in sorted(p for p in raw.rglob("*") if p.is_file() and p.name != "meta.json"):
        inner = path.relative_to(raw)
        data = path.read_bytes()
        files[str(inner)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        out = target / inner
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            out.write_bytes(data)
        else:
            out.with_name(out.name + ".xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    meta = json.loads((raw / "meta.json").read_text())
    meta["files"] = files
    (target / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return sum(p.stat().st_size for p in target.rglob("*") if p.is_file())


def run(program: str, names: list[str], folder: Path) -> None:
    """Let a program write these fixtures below `folder`."""
    upstream = Path(os.environ["UPSTREAM"]).resolve()
    path = os.pathsep.join(str(upstream / name) for name in FAMILIES[program])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "UPSTREAM": str(upstream)}
    subprocess.run([sys.executable, str(HERE / program), str(folder), *names], env=environment, check=True, cwd=folder)


def main(wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for program in FAMILIES:
            known = [n for n in names_of(program) if not n.startswith("published_")]
            names = [n for n in known if not wanted or n in wanted]
            if names:
                run(program, names, Path(folder))
            for name in names:
                print(f"{name}: {pack(Path(folder) / name, TARGET / name) / 1000:.0f} kB", flush=True)
                shutil.rmtree(Path(folder) / name)


if __name__ == "__main__":
    main(sys.argv[1:])
