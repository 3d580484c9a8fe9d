"""The fixtures are what their meta.json says, and no one's private files: sizes, hashes, shapes, licences."""

from __future__ import annotations

import hashlib
import lzma
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from upstream_fixtures import NAMES, ROOT, fixture, meta, named

SMALL = tuple(n for n in NAMES if sum(f["bytes"] for f in meta(n)["files"].values()) < 4e6)
LICENSES = {"diffusion_policy": "MIT", "lerobot": "Apache-2.0", "robomimic": "MIT"}


def test_every_project_and_kind_is_there() -> None:
    assert len(named("dp_unet")) >= 8
    assert len(named("dp_transformer")) >= 3
    assert len(named("lerobot")) >= 5
    assert len(named("robomimic")) >= 5
    assert {meta(n)["class"].rsplit(".", 1)[1] for n in named("dp_")} == {
        "DiffusionUnetLowdimPolicy", "DiffusionTransformerLowdimPolicy", "DiffusionUnetImagePolicy",
        "DiffusionUnetHybridImagePolicy", "DiffusionTransformerHybridImagePolicy",
    }  # fmt: skip


def test_they_stay_small() -> None:
    sizes = [p.stat().st_size for p in ROOT.rglob("*") if p.is_file()]
    assert sum(sizes) < 6e6
    assert max(sizes) < 1e6


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_meta(name: str) -> None:
    facts = meta(name)
    assert facts["license"] == LICENSES[facts["project"]]
    assert facts["precision"]["float32_to_float64_max"] < 1e-5  # else 1e-5 could not be asked of anyone
    assert facts["plan"]["at_the_clip_range"] < 0.3  # where chunks are clipped, errors do not show
    stored = {
        str(p.relative_to(ROOT / name)).removesuffix(".xz")
        for p in (ROOT / name).rglob("*")
        if p.is_file() and p.name != "meta.json"
    }
    assert stored == set(facts["files"])
    assert any(f == facts["checkpoint"] or f.startswith(facts["checkpoint"] + "/") for f in stored)


@pytest.mark.parametrize("name", SMALL)
def test_contents(name: str, tmp_path: Path) -> None:
    path, io, facts = fixture(name, tmp_path)
    assert path.exists()
    for file, what in facts["files"].items():
        data = (tmp_path / name / file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (what["bytes"], what["sha256"])
    settings = facts["settings"]
    K, T, Ta, Da = (settings[k] for k in ("num_inference_steps", "horizon", "n_action_steps", "action_dim"))
    B, T_plan, D = io["noise.start"].shape
    assert io["noise.steps"].shape == (K, B, T_plan, D)
    assert T_plan in (T, Ta)
    assert not io["noise.steps"][-1].any()
    assert io["expected.plan"].shape == (B, T_plan, D)
    assert io["expected.action_pred"].shape == (B, T_plan, Da)
    assert io["expected.action"].shape == (B, Ta, Da)
    assert io["features"].shape[:2] == (B, settings["n_obs_steps"])
    assert io["network.out"].shape == io["network.x"].shape == (B, T_plan, D)
    # Two windows of observations have different plans: the condition is heard.
    assert (io["expected.plan"][0] - io["expected.plan"][1]).abs().max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_executed_actions_are_a_slice_of_the_plan(name: str) -> None:
    io = load(lzma.decompress((ROOT / name / "io.safetensors.xz").read_bytes()))
    action, plan = io["expected.action"], io["expected.action_pred"]
    Ta = action.shape[1]
    starts = [s for s in range(plan.shape[1] - Ta + 1) if torch.allclose(plan[:, s : s + Ta], action, atol=1e-6)]
    assert len(starts) == 1


def test_nothing_of_the_machine_that_made_them_is_inside() -> None:
    found = []
    for path in ROOT.rglob("*"):
        if path.is_file():
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            if len(data) < 4e6 and re.search(rb"/(root|home|work|tmp)/", data):
                found.append(path.name)
    assert not found


def test_setup_is_a_shell_script() -> None:
    script = ROOT.parents[2] / "tools" / "upstream" / "setup.sh"
    assert subprocess.run(["sh", "-n", str(script)], capture_output=True).returncode == 0
