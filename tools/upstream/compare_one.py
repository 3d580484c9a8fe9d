"""One policy that upstream saved and ran, read and run by this package: PYTHONPATH=.:tests python compare_one.py FOLDER

Prints a line of JSON: largest absolute errors, each relative to the largest number if that is above 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from upstream_fixtures import ROOT, fixture

from diffpolicy_spec import load_policy
from diffpolicy_spec.noise import Noise
from diffpolicy_spec.samplers import SamplerConfig


def error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max(1, max |theirs|)."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {tuple(ours.shape)}, upstream {tuple(theirs.shape)}")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


def observations(io: dict[str, Tensor], config: Any, prefix: str) -> dict[str, Tensor]:
    """Tensors of io under the policy's keys: diffusion_policy's one vector "obs" is split into them."""
    given = {key.removeprefix(prefix): value for key, value in io.items() if key.startswith(prefix)}
    if "obs" in given and "obs" not in config.obs_dims:
        parts = given.pop("obs").split(list(config.obs_dims.values()), dim=-1)
        given |= dict(zip(config.obs_dims, parts, strict=True))
    return {key: value.float() / 255 if value.dtype == torch.uint8 else value for key, value in given.items()}


@torch.no_grad()
def compare(path: Path, io: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint and compare all that io holds."""
    policy = load_policy(path)
    config = policy.config
    obs = observations(io, config, "obs.")
    normaliser = 0.0
    for key, theirs in observations(io, config, "normalized.").items():
        last = obs[key].movedim(2, -1) if key in config.image_shapes else obs[key]
        ours = policy.normalizer.normalize(key, last)
        normaliser = max(normaliser, error(ours.movedim(-1, 2) if key in config.image_shapes else ours, theirs))
    condition, _ = policy.condition(obs)
    network = policy.network(io["network.x"], io["network.t"], condition)
    steps = io["noise.steps"]
    method = "ddim" if policy.scheduler_config["_class_name"] == "DDIMScheduler" else "ddpm"
    noise = Noise(io["noise.start"], steps, torch.zeros(steps.shape[:2]))
    chunk = policy.predict_action(obs, sampler=policy.bind(SamplerConfig(method)), noise=noise)
    pairs = ((chunk.plan, "plan"), (chunk.action_pred, "action_pred"), (chunk.action, "action"))
    modules = [m for m in (policy.network, policy.encoder) if m is not None]
    return {
        "class": meta["class"].rpartition(".")[2],
        "project": meta["project"],
        "versions": meta["versions"],
        "parameters": sum(p.numel() for m in modules for p in m.parameters()),
        "steps": len(steps),
        "errors": {
            "normaliser": normaliser,
            "features": error(policy.features(obs), io["features"]),
            "network": error(network, io["network.out"]),
            "chunk": max(error(ours, io[f"expected.{name}"]) for ours, name in pairs),
        },
        "float32": meta["precision"]["float32_to_float64_max"],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as unpacked:
        if folder.parent == ROOT:
            path, io, meta = fixture(folder.name, Path(unpacked))
        else:
            meta = json.loads((folder / "meta.json").read_text())
            path, io = folder / meta["checkpoint"], load_file(folder / "io.safetensors")
        print(json.dumps(compare(path, io, meta)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
