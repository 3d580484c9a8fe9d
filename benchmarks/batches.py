"""How quickly training batches are made: from an hdf5 and a zarr, of numbers and of images.

    python benchmarks/batches.py                                    # needs 1 GB in --folder
    python benchmarks/batches.py --episodes 10 --repeats 5          # a quick look

Numbers: batches of 256 a second against the optimiser steps a second of the small U-Net (configs/model/unet_small) on
two threads, which is what consumes them. Images: batches of 64 sequences of two frames of two cameras of 84 x 84, at
random places of the file, against h5py's (or zarr's) own reading of as many bytes of the same file from beginning to
end. Medians; files are in the system's cache, as they are in training after the first epoch. Needs h5py, zarr and this
repository; writes benchmarks/results/batches.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from numcodecs import Blosc  # type: ignore[import-untyped]

from diffpolicy_spec.data import Episode, read_dataset
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.optional import require
from diffpolicy_spec.policies import EncoderConfig, PolicyConfig, UnetConfig
from diffpolicy_spec.training import TrainConfig
from diffpolicy_spec.training.batches import Batches, cut_for, fit_normalizer, prepare
from diffpolicy_spec.training.images import ImageLoading, ImageReader, image_tables
from diffpolicy_spec.training.processes import Processes
from diffpolicy_spec.training.run import prepare_run

RESULTS = Path(__file__).parent / "results"
OBS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
CAMERAS = {"agentview_image": (3, 84, 84), "robot0_eye_in_hand_image": (3, 84, 84)}
SMALL = UnetConfig(down_dims=(48, 96, 192), diffusion_step_embed_dim=64)
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
STEPS, BATCH, IMAGE_BATCH = 60, 256, 64


def recording(episodes: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random walks of Lift's shapes, and pictures with edges and noise, all episodes one after the other."""
    rng = np.random.default_rng(0)
    rows = episodes * STEPS
    data = {key: rng.normal(size=(rows, dim)).cumsum(0).astype(np.float32) for key, dim in OBS.items()}
    data["actions"] = rng.uniform(-1, 1, (rows, 7)).astype(np.float32)
    for camera, (C, H, W) in CAMERAS.items():
        blocks = rng.integers(0, 250, (rows, H // 12, W // 12, C), dtype=np.uint8).repeat(12, 1).repeat(12, 2)
        data[camera] = blocks + rng.integers(0, 5, blocks.shape, dtype=np.uint8)
    return data, np.arange(1, episodes + 1) * STEPS


def write_hdf5(path: Path, data: dict[str, np.ndarray], ends: np.ndarray, **options: Any) -> Path:
    """robomimic's layout; options are those of its images."""
    with h5py.File(path, "w") as file:
        for i, end in enumerate(ends):
            group, rows = file.create_group(f"data/demo_{i}"), slice(end - STEPS, end)
            group["actions"] = data["actions"][rows]
            for key in OBS:
                group[f"obs/{key}"] = data[key][rows]
            for camera in CAMERAS:
                group.create_dataset(f"obs/{camera}", data=data[camera][rows], **options)
    return path


def write_zarr(path: Path, data: dict[str, np.ndarray], ends: np.ndarray, frames: int) -> Path:
    """diffusion_policy's layout, compressed as it does, so many frames a chunk."""
    root = zarr.open_group(store=str(path), mode="w", zarr_format=2)
    codec = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
    for key, values in data.items():
        chunks = (frames if values.ndim == 4 else len(values), *values.shape[1:])
        name = "action" if key == "actions" else key
        root.create_array(f"data/{name}", data=values, chunks=chunks, compressors=codec)
    root.create_array("meta/episode_ends", data=ends)
    return path


def config(**changes: Any) -> PolicyConfig:
    """Lift's."""
    values: dict[str, Any] = {"obs_dims": OBS, "action_dim": 10, "action_repr": "absolute_rot6d", "unet": SMALL}
    return PolicyConfig(**values | changes)


def median_s(call: Callable[[int], Any], repeats: int) -> float:
    """Of call(0), call(1), ..., after two to warm up."""
    times = []
    for i in range(repeats + 2):
        begin = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def numbers(path: Path, repeats: int) -> dict[str, Any]:
    """Batches a second, and steps a second that consume them."""
    begin = time.perf_counter()
    episodes = read_dataset(path, OBS, action_repr="absolute_rot6d")
    read_s = time.perf_counter() - begin
    settings = TrainConfig(batch_size=BATCH, max_steps=10**6)
    run = prepare_run(episodes, [], config(), SCHEDULER, settings, Processes(torch.device("cpu")), ImageLoading())
    batch_s = median_s(run.batches.at, 10 * repeats)
    step_s = median_s(lambda _: run.advance(), repeats)
    return {
        "file": path.name, "read_s": read_s, "batches_per_s": 1 / batch_s, "steps_per_s": 1 / step_s,
        "ratio": step_s / batch_s,
    }  # fmt: skip


def sequential(path: Path, nbytes: int, repeats: int) -> float:
    """Seconds that h5py or zarr takes for so many bytes of images, whole demonstrations one after the other."""
    if path.is_dir():
        array: Any = zarr.open_group(store=str(path), mode="r")[f"data/{next(iter(CAMERAS))}"]
        rows = max(STEPS // array.chunks[0], 1) * array.chunks[0]
        starts = range(0, array.shape[0] - rows + 1, rows)
        took = median_s(lambda i: array[starts[i % len(starts)] : starts[i % len(starts)] + rows], repeats)
        return took * nbytes / (rows * int(np.prod(array.shape[1:])))
    with h5py.File(path, "r") as file:
        arrays = [file[f"data/demo_{i}/obs/{camera}"] for i in range(len(file["data"])) for camera in CAMERAS]
        took = median_s(lambda i: arrays[i % len(arrays)][:], max(repeats, len(arrays)))
        return took * nbytes / arrays[0].nbytes


def images(path: Path, loading: ImageLoading, repeats: int) -> dict[str, Any]:
    """Milliseconds a batch of images, and as many bytes read in order take."""
    episodes: list[Episode] = read_dataset(path, {}, action_repr="absolute_rot6d", image_shapes=CAMERAS)
    policy = config(obs_dims={}, image_shapes=CAMERAS, encoder=EncoderConfig(crop=(76, 76)))
    data = prepare(cut_for(policy, episodes), policy, fit_normalizer(episodes, policy))
    begin = time.perf_counter()
    tables, taken = image_tables(episodes, CAMERAS, loading, budget=loading.budget())
    fill_s = time.perf_counter() - begin if taken else 0.0
    for table in tables.values():
        for low in range(0, len(table) if table.direct else 0, STEPS):  # the first epoch: pages are mapped when touched
            table.read(np.arange(low, low + STEPS))
    drawn = Batches(data, batch_size=IMAGE_BATCH, num_timesteps=100, seed=0)
    reader = ImageReader(tables, data.frames, drawn.order, drawn.share, loading, 10**6, "cpu")  # type: ignore[arg-type]
    batches = [drawn.at(step) for step in range(repeats + 2)]
    nbytes = sum(x.numel() for x in reader.fill(batches[0]).images.values())
    read_s = median_s(lambda i: reader.fill(batches[i]), repeats)
    ahead_s = median_s(lambda i: reader.fill(batches[i], i), repeats) if loading.workers else read_s
    own_s = sequential(path, nbytes, repeats)
    return {
        "file": path.name, "cache": loading.cache, "memory_mb": taken / 1e6, "fill_s": fill_s, "mb": nbytes / 1e6,
        "read_ms": 1e3 * read_s, "ahead_ms": 1e3 * ahead_s, "sequential_ms": 1e3 * own_s, "ratio": read_s / own_s,
    }  # fmt: skip


def tables(described: dict[str, Any]) -> str:
    """Both results as markdown tables."""
    text = ["| numbers | read once | batches of 256 a second | steps a second of the small network | ratio |",
            "|---|---|---|---|---|"]  # fmt: skip
    text += [
        f"| {r['file']} | {r['read_s']:.2f} s | {r['batches_per_s']:,.0f} | {r['steps_per_s']:.1f} | {r['ratio']:.0f} |"
        for r in described["numbers"]
    ]
    text += [
        "",
        "| images | cache_images | memory | read ahead | read | in order | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in described["images"]:
        memory = f"{r['memory_mb']:,.0f} MB in {r['fill_s']:.1f} s" if r["memory_mb"] else "none"
        text.append(
            f"| {r['file']} | {r['cache']} | {memory} | {r['ahead_ms']:.1f} ms | {r['read_ms']:.1f} ms | "
            f"{r['sequential_ms']:.1f} ms | {r['ratio']:.2f} |"
        )
    mb = described["images"][0]["mb"]
    text += [
        "",
        f"A batch of images is {mb:.1f} MB: 64 sequences of two frames of two cameras. *read*: in the "
        "training process. *read ahead*: by two processes, what is left to wait for when nothing else is done. *in "
        "order*: h5py's or zarr's own reading of as many bytes of the file from beginning to end. *ratio*: read to it.",
    ]
    return "\n".join(text)


def main() -> None:
    """Write, read, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files are written; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of batches.json and batches.md")
    given = parser.parse_args()
    require("h5py", extra="data")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, (data, ends) = Path(name), recording(given.episodes)
        files = [
            write_hdf5(folder / "plain.hdf5", data, ends),
            write_hdf5(folder / "gzip.hdf5", data, ends, compression="gzip"),
            write_zarr(folder / "one_frame_a_chunk.zarr", data, ends, 1),
            write_zarr(folder / "161_frames_a_chunk.zarr", data, ends, 161),
        ]
        del data
        loadings = [ImageLoading("auto", workers=2), ImageLoading("none", workers=2)]
        described = {
            "numbers": [numbers(path, given.repeats) for path in (files[0], files[2])],
            "images": [images(path, how, given.repeats) for path in files for how in loadings],
            "episodes": given.episodes, "repeats": given.repeats, "environment": environment("cpu", given.threads),
        }  # fmt: skip
    text = tables(described)
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "batches.json").write_text(json.dumps(described, indent=1) + "\n")
    (given.output / "batches.md").write_text(f"# Training batches\n\n{text}\n")


if __name__ == "__main__":
    main()
