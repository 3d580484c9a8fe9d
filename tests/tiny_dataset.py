"""A robomimic hdf5 of Lift's shapes, written with h5py as robomimic's own scripts do."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def write_dataset(
    path: Path,
    lengths: tuple[int, ...] = (20, 25, 18, 22),
    seed: int = 0,
    cameras: dict[str, tuple[int, int]] | None = None,
) -> Path:
    """Straight reaches to a cube; the last demonstration is for validation.

    cameras: name -> (H, W) of its images, of noise: (N, H, W, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for i, n in enumerate(lengths):
            time = np.linspace(0, 1, n)[:, None]
            cube = np.array([[*rng.uniform(-0.03, 0.03, 2), 0.82]])
            position = (1 - time) * np.array([[-0.1, 0.0, 1.0]]) + time * cube
            group = data.create_group(f"demo_{i}")
            rotation = np.tile([[np.pi - 0.01, 0.02, 0.0]], (n, 1))
            group["actions"] = np.concatenate([position, rotation, np.where(time < 0.7, -1.0, 1.0)], axis=1)
            obs = group.create_group("obs")
            pose = np.tile(np.concatenate([cube, [[0.0, 0.0, 0.0, 1.0]]], axis=1), (n, 1))
            obs["object"] = np.concatenate([pose, cube - position], axis=1)
            obs["robot0_eef_pos"] = position
            obs["robot0_eef_quat"] = np.tile([[1.0, 0, 0, 0]], (n, 1))
            obs["robot0_gripper_qpos"] = np.tile([[0.04, -0.04]], (n, 1))
            for camera, size in (cameras or {}).items():
                obs[camera] = rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
            group.attrs["num_samples"] = n
        names = [f"demo_{i}" for i in range(len(lengths))]
        mask = file.create_group("mask")
        mask["train"] = np.array(names[:-1], dtype="S")
        mask["valid"] = np.array(names[-1:], dtype="S")
    return path
