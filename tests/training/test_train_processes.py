"""Several processes that share every batch come to what one process comes to."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_dataset import write_dataset
from tiny_images import CAMERAS, write_image_dataset

# Two channels a group of GroupNorm: with one, the bias before it has no gradient but rounding, which Adam blows up.
TINY = [
    "batch_size=8", "lr=0.003", "warmup_steps=2", "max_steps=12", "log_every=4", "val_every=12", "checkpoint_every=6",
    "snapshot_every=6", "val_sequences=4", "num_threads=1", "storage_dtype=float32", "model.unet.down_dims=[16,32]",
    "model.unet.diffusion_step_embed_dim=8",
]  # fmt: skip
IMAGES = [
    "task=lift_image", *(f"task.images.{camera}=[3,40,40]" for camera in CAMERAS), "model=image_unet_small",
    "model.encoder.crop=[36,36]", "model.encoder.features=8",
]  # fmt: skip


def start(processes, *overrides):
    pytest.importorskip("hydra")
    program = ["-m", "diffpolicy_spec.training.cli", *TINY, *overrides]
    if processes == 1:
        command = [sys.executable, *program]
    else:
        pytest.importorskip("accelerate")
        # On GPUs `accelerate launch` does the same; on CPUs it wants MPI.
        share = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *share, *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finished(process):
    said, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert said.count("trained policy") == 1  # one of them speaks


def state(output):
    return torch.load(output / "state.pt", weights_only=True)


@pytest.mark.parametrize("kind", ["numbers", "images"])
def test_two_processes_are_one(tmp_path, kind):
    """Same weights up to the order of sums, and one set of files."""
    path = tmp_path / "lift.hdf5"
    (write_dataset if kind == "numbers" else write_image_dataset)(path)
    options = [*(IMAGES if kind == "images" else []), f"dataset={path}"]
    running = [start(n, *options, f"output={tmp_path / str(n)}") for n in (1, 2)]
    for process in running:
        finished(process)
    one, two = state(tmp_path / "1"), state(tmp_path / "2")
    assert one["identity"] == two["identity"]
    for part in ("network", "encoder"):
        for name, value in one[part].items():
            if name.endswith("pool.nets.bias"):
                continue  # softmax does not see it: rounding, too
            apart = (two[part][name] - value).square().mean().sqrt()  # a step of Adam's is 0.003, and there are 12
            assert apart < 1e-4, f"{name}: {apart}"
    curves = [[json.loads(r) for r in (tmp_path / n / "loss.jsonl").read_text().splitlines()] for n in "12"]
    assert [r["step"] for r in curves[1]] == [4, 6, 8, 12]
    for name in ("train_loss", "lr"):
        assert [r[name] for r in curves[1]] == pytest.approx([r[name] for r in curves[0]], rel=1e-3)
    assert curves[1][-1]["val_loss"] == pytest.approx(curves[0][-1]["val_loss"], rel=1e-3)
    assert {p.name for p in (tmp_path / "2").iterdir()} == {p.name for p in (tmp_path / "1").iterdir()}


def test_a_batch_that_cannot_be_shared(tmp_path):
    path = write_dataset(tmp_path / "lift.hdf5")
    process = start(2, f"dataset={path}", f"output={tmp_path / 'run'}", "batch_size=7")
    _, told = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "2 processes cannot share batches of 7 sequences equally: choose another batch_size" in told
