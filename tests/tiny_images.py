"""Small datasets with cameras, in the real layouts: what there is to know is in the pictures."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import zarr
from tiny_dataset import write_dataset

CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def draw(points, size):
    """(N, size, size, 3) uint8: a bright square at each of the points (N, 2) in [0, 1], on grey."""
    images = np.full((len(points), size, size, 3), 90, dtype=np.uint8)
    for image, (x, y) in zip(images, points, strict=True):
        column, row = int(np.clip(x, 0, 1) * (size - 8)), int(np.clip(y, 0, 1) * (size - 8))
        image[row : row + 8, column : column + 8] = (250, 200, 30)
    return images


def write_image_dataset(path: Path, size: int = 40, **options) -> Path:
    """`write_dataset` with two cameras; options are h5py's, e.g. compression="gzip"."""
    write_dataset(path)
    with h5py.File(path, "a") as file:
        for group in file["data"].values():
            cube, gripper = group["obs/object"][:, :2], group["obs/robot0_eef_pos"][:, :2]
            for camera, seen in zip(CAMERAS, (gripper, cube - gripper), strict=True):
                images = draw(0.5 + 3 * seen, size)
                group["obs"].create_dataset(camera, data=images, **options)
    return path


def write_pusht_images(path: Path, lengths=(30, 22, 26), dtype=np.float32, size: int = 96) -> Path:
    """Push-T's store with `img` in diffusion_policy's layout: float32 of 0 to 255, many frames a chunk."""
    rng = np.random.default_rng(0)
    state, action = [], []
    for n in lengths:
        agent, block = rng.uniform(50, 450, 2), np.array([*rng.uniform(200, 300, 2), rng.uniform(0, 6)])
        for way in np.linspace(0, 1, n):
            state.append([*(agent + way * (block[:2] - agent)), *block])
            action.append(agent + min(way + 0.1, 1) * (block[:2] - agent))
    state, action = np.array(state, dtype=np.float32), np.array(action, dtype=np.float32)
    root = zarr.open_group(store=str(path), mode="w", zarr_format=2)
    images = draw(state[:, 2:4] / 512, size).astype(dtype)
    root.create_array("data/img", data=images, chunks=(17, size, size, 3))
    root.create_array("data/state", data=state)
    root.create_array("data/action", data=action)
    root.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return path
