"""Files that nobody should have to read: deterministic damage and malice, made from small valid files of every format.

`cases(folder)` makes the valid files below `folder` and yields the cases; `Case.make(folder)` writes one. What is
expected of readers is in tests/checkpoints/test_hostile_files.py.
"""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import upstream_fixtures
from hostile_datasets import dataset_cases
from hostile_pickles import pickle_cases
from hostile_settings import settings_cases
from tiny_dataset import write_dataset
from tiny_policy import tiny_policy

from diffpolicy_spec.data import write_replay_buffer

CANARY = "canary"
"""A file of this name in the working directory: code of a hostile file was run."""

UPSTREAM = {
    "dp": "dp_unet_lowdim_global",
    "dp_transformer": "dp_transformer_lowdim",
    "lerobot": "lerobot_state_env",
    "lerobot_old": "lerobot_old_layout",
    "robomimic": "robomimic_lowdim",
}
"""Formats -> the fixture of upstream's own code that they are made from."""


@dataclass(frozen=True)
class Case:
    """One file to be refused.

    Attributes:
        format: of UPSTREAM, "native", "hdf5", "zarr", "zarr_zip" or "none".
        name: what was done to it.
        make: (empty folder) -> path that a reader is given.
        may_be_valid: a flipped bit within numbers may leave a valid file: then loading it is fine.
        unprivileged: to be read without root's rights.
    """

    format: str
    name: str
    make: Callable[[Path], Path]
    may_be_valid: bool = False
    unprivileged: bool = False

    @property
    def reader(self) -> str:
        """ "policy" or "dataset"."""
        return "dataset" if self.format in ("hdf5", "zarr", "zarr_zip") else "policy"


def valid_files(folder: Path) -> dict[str, Path]:
    """Format -> a small valid file or folder of it."""
    folder.mkdir(parents=True, exist_ok=True)
    valid = {}
    for format, name in UPSTREAM.items():
        if name in upstream_fixtures.NAMES:
            valid[format] = upstream_fixtures.fixture(name, folder)[0]
    valid["native"] = folder / "native"
    tiny_policy(speculation={"gain": np_tensor()}).save(valid["native"])
    valid["hdf5"] = write_dataset(folder / "lift.hdf5", lengths=(20, 25))
    data = {"state": np.ones((30, 5), "f4"), "action": np.random.default_rng(0).normal(size=(30, 2)).astype("f4")}
    for format, name in (("zarr", "push.zarr"), ("zarr_zip", "push.zarr.zip")):
        valid[format] = folder / name
        write_replay_buffer(valid[format], data, [12, 30])
    return valid


def np_tensor():
    """Something that is stored for speculation and has no meaning."""
    import torch

    return torch.arange(24.0).reshape(2, 3, 4)


_PARTS = {
    "native": ("config.json", "model.safetensors", "speculation.safetensors"),
    "lerobot": (
        "config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json",
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
    ),
    "lerobot_old": ("config.json", "model.safetensors"),
    "zarr": (".zgroup", "data/.zgroup", "data/action/.zarray", "data/action/0.0", "meta/episode_ends/.zarray",
             "meta/episode_ends/0", "data/state/.zarray"),
}  # fmt: skip
"""The files of a folder that are damaged one by one."""


def cases(folder: Path) -> Iterator[Case]:
    """All cases, in a fixed order."""
    valid = valid_files(folder)
    for format, path in valid.items():
        for part in _PARTS.get(format, ("",)):
            yield from _damaged(format, path, part)
    yield from _swapped(valid)
    yield from _odd_paths(valid)
    for module in (pickle_cases, settings_cases, dataset_cases):
        for format, name, make in module(valid):
            yield Case(format, name, make)


def _copy(path: Path, folder: Path) -> Path:
    target = folder / path.name
    return Path(shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target))


def _damaged(format: str, path: Path, part: str) -> Iterator[Case]:
    """Truncated, zeroed, flipped, replaced: the same for every file of a format."""
    data = (path / part if part else path).read_bytes()
    size, what = len(data), part or path.name
    text = what.endswith((".json", ".zgroup", ".zarray"))

    def case(name: str, change: Callable[[], bytes], may_be_valid: bool = False) -> Case:
        def make(folder: Path) -> Path:
            copy = _copy(path, folder)
            (copy / part if part else copy).write_bytes(change())
            return copy

        return Case(format, f"{what}: {name}", make, may_be_valid)

    yield case("empty", lambda: b"")
    # A zarr chunk or an index is compressed as a whole; what stands in a group's file is hardly looked at.
    for share in (0.02, 0.25, 0.5, 0.75, 0.97):
        yield case(f"truncated to {share:.0%}", lambda share=share: data[: int(size * share)])
    yield case("the last byte lacks", lambda: data[:-1], may_be_valid=text)
    yield case("the first byte lacks", lambda: data[1:])
    yield case("all zeros", lambda: bytes(size), may_be_valid=what.endswith("0.0"))
    yield case("the beginning zeroed", lambda: bytes(min(64, size)) + data[64:])
    yield case("the end zeroed", lambda: data[: -min(64, size)] + bytes(min(64, size)), may_be_valid=True)
    yield case("noise", lambda: random.Random(0).randbytes(max(size, 16)))
    yield case("a git-lfs pointer", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    yield case("an HTML page", lambda: b"<!DOCTYPE html><html><body>404: Not Found</body></html>")
    yield case("null bytes within", lambda: data[: size // 3] + bytes(32) + data[size // 3 + 32 :], may_be_valid=True)
    rng = random.Random(f"{format} {what}")
    # Headers stand at the beginning, directories of archives at the end.
    places = [rng.randrange(min(size, 400)) for _ in range(6)]
    places += [size - 1 - rng.randrange(min(size, 400)) for _ in "abcd"]
    places += [rng.randrange(size) for _ in range(6)]
    for place in places:
        bit = 1 << rng.randrange(8)

        def flip(place: int = place, bit: int = bit) -> bytes:
            return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]

        yield case(f"bit {bit} of byte {place} flipped", flip, may_be_valid=True)


def _swapped(valid: dict[str, Path]) -> Iterator[Case]:
    """A file of another format under the name, in the place, of this one."""
    suffixes = {"dp": ".ckpt", "hdf5": ".hdf5", "zarr_zip": ".zarr.zip", "robomimic": ".pth"}
    for format, suffix in suffixes.items():
        for other, path in valid.items():
            policies = {"dp", "dp_transformer", "robomimic", "native", "lerobot", "lerobot_old"}
            if other == format or (format in policies and other in policies) or path.is_dir():
                continue
            if {format, other} == {"hdf5", "zarr_zip"}:
                continue  # a reader may see which of the two it is

            def make(folder: Path, path: Path = path, suffix: str = suffix) -> Path:
                return Path(shutil.copyfile(path, folder / f"swapped{suffix}"))

            yield Case(format, f"is a {other}", make)
    for format in ("native", "lerobot"):
        for name, source in (("model.safetensors", valid["hdf5"]), ("config.json", valid["dp"])):

            def make_part(folder: Path, f: str = format, name: str = name, source: Path = source) -> Path:
                copy = _copy(valid[f], folder)
                shutil.copyfile(source, copy / name)
                return copy

            yield Case(format, f"{name} is of another format", make_part)
    other = {"native": "lerobot", "lerobot": "native"}
    for format, stranger in other.items():

        def make_weights(folder: Path, f: str = format, s: str = stranger) -> Path:
            copy = _copy(valid[f], folder)
            shutil.copyfile(valid[s] / "model.safetensors", copy / "model.safetensors")
            return copy

        yield Case(format, f"weights of a {stranger} policy", make_weights)


def _odd_paths(valid: dict[str, Path]) -> Iterator[Case]:
    """What is in a file's place: nothing, folders, links in a circle, devices, what may not be read."""
    for format in ("dp", "native", "hdf5", "zarr", "zarr_zip"):
        suffix = {"dp": ".ckpt", "hdf5": ".hdf5", "zarr": ".zarr", "zarr_zip": ".zip"}.get(format, "")

        def empty_folder(folder: Path, suffix: str = suffix) -> Path:
            path = folder / f"empty{suffix}"
            path.mkdir()
            return path

        def circle(folder: Path, suffix: str = suffix) -> Path:
            path = folder / f"circle{suffix}"
            path.symlink_to(path)
            return path

        def dangling(folder: Path, suffix: str = suffix) -> Path:
            path = folder / f"dangling{suffix}"
            path.symlink_to(folder / "nowhere")
            return path

        def fifo(folder: Path, suffix: str = suffix) -> Path:
            path = folder / f"pipe{suffix}"
            os.mkfifo(path)
            return path

        def device(folder: Path, suffix: str = suffix) -> Path:
            path = folder / f"zero{suffix}"
            path.symlink_to("/dev/zero")
            return path

        def locked(folder: Path, format: str = format) -> Path:
            copy = _copy(valid[format], folder)
            copy.chmod(0)
            return copy

        for make in (empty_folder, circle, dangling, fifo, device):
            yield Case(format, f"a {make.__name__.replace('_', ' ')}", make)
        yield Case(format, "may not be read", locked, unprivileged=True)
    parts = {"native": ("model.safetensors", "config.json"), "lerobot": ("config.json", "model.safetensors"),
             "zarr": ("data/action/0.0", ".zgroup")}  # fmt: skip
    for format, part in ((f, part) for f, names in parts.items() for part in names):

        def folder_instead(folder: Path, f: str = format, part: str = part) -> Path:
            copy = _copy(valid[f], folder)
            (copy / part).unlink()
            (copy / part).mkdir()
            return copy

        def looped(folder: Path, f: str = format, part: str = part) -> Path:
            copy = _copy(valid[f], folder)
            (copy / part).unlink()
            (copy / part).symlink_to(copy / part)
            return copy

        # A chunk that is not there is its fill value, zeros.
        yield Case(format, f"{part} is a folder", folder_instead, may_be_valid=part.endswith("0.0"))
        yield Case(format, f"{part} is a circle of links", looped, may_be_valid=part.endswith("0.0"))


def rezip(path: Path, target: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip with members replaced, by the end of their name; None leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            data: bytes | None = old.read(info)
            for ending, value in change.items():
                if info.filename.endswith(ending):
                    data = value
            if data is not None:
                new.writestr(info.filename, data)
    return target
