"""Datasets that lie about their sizes, hold no numbers, refer to themselves or elsewhere, or carry code."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Made = tuple[str, str, Callable[[Path], Path]]


class TouchesCanary:
    """Leaves a file `canary` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch canary",)


def dataset_cases(valid: dict[str, Path]) -> Iterator[Made]:
    """(format, name, make)."""
    for name, change in _hdf5().items():

        def make(folder: Path, change: Callable[[h5py.File], object] = change) -> Path:
            copy = Path(shutil.copyfile(valid["hdf5"], folder / "changed.hdf5"))
            with h5py.File(copy, "a") as file:
                change(file)
            return copy

        yield "hdf5", name, make
    for name, edit in _stores().items():

        def make_store(folder: Path, edit: Callable[[Path], object] = edit) -> Path:
            copy = Path(shutil.copytree(valid["zarr"], folder / "changed.zarr"))
            edit(copy)
            return copy

        def make_zip(folder: Path, edit: Callable[[Path], object] = edit) -> Path:
            plain = Path(shutil.copytree(valid["zarr"], folder / "plain"))
            edit(plain)
            with zipfile.ZipFile(folder / "changed.zarr.zip", "w") as file:
                for path in sorted(plain.rglob("*")):
                    if path.is_file():
                        file.write(path, path.relative_to(plain))
            shutil.rmtree(plain)
            return folder / "changed.zarr.zip"

        yield "zarr", name, make_store
        if "zipped" in name or "code" in name:
            yield "zarr_zip", name, make_zip
    yield from _zips(valid["zarr"])


def _replace(key: str, value: Any = None, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        if value is not None or options:
            file.create_dataset(key, data=value, **options)

    return change


def _set(key: str, where: Any, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[key][where] = value

    return change


def _hdf5() -> dict[str, Callable[[h5py.File], object]]:
    action, seen = "data/demo_1/actions", "data/demo_1/obs/object"

    def link(key: str, target: Any) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            del file[key]
            file[key] = target(file) if callable(target) else target

        return change

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((25, 7), "f8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(25, 7))
        del file[action]
        file.create_virtual_dataset(action, layout)

    def bomb(file: h5py.File) -> None:
        """400 MB of zeros in 400 kB, more than any recording is compressed."""
        del file[action]
        file.create_dataset(action, shape=(50_000_000, 7), dtype="f8", chunks=(1_000_000, 7), compression="gzip")
        file[action][:1_000_000] = 0

    def many_zeros(file: h5py.File) -> None:
        del file[seen]
        zeros = np.zeros((10_000_000, 10), "f4")
        file.create_dataset(seen, data=zeros, chunks=(1_000_000, 10), compression="gzip", compression_opts=9)

    compound = np.zeros(25, dtype=[("x", "f4"), ("y", "i4")])
    return {
        "actions lack": _replace(action),
        "actions are a group": link(action, lambda f: f["data/demo_1/obs"]),
        "actions are text": _replace(action, np.array([b"left"] * 25)),
        "actions are of variable length": _replace(action, shape=(25,), dtype=h5py.vlen_dtype("f8")),
        "actions are references": _replace(action, shape=(25,), dtype=h5py.ref_dtype),
        "actions are compound": _replace(action, compound),
        "actions are complex": _replace(action, np.zeros((25, 7), complex)),
        "actions are opaque": _replace(action, np.zeros(25, "V8")),
        "actions are one number": _replace(action, 3.0),
        "actions are empty": _replace(action, h5py.Empty("f8")),
        "actions have no rows": _replace(action, np.zeros((0, 7))),
        "actions of 0 numbers": _replace(action, np.zeros((25, 0))),
        "actions of 6 numbers": _replace(action, np.zeros((25, 6))),
        "actions of 5 axes": _replace(action, np.zeros((25, 1, 1, 1, 7))),
        "actions are NaN": _set(action, (3, 2), np.nan),
        "actions are infinite": _set(action, (3, 2), np.inf),
        "actions of 10^12 rows that are not there": _replace(action, shape=(10**12, 7), dtype="f8", chunks=(1000, 7)),
        "actions of 2^40 rows, contiguous": _replace(action, shape=(2**40, 7), dtype="f8"),
        "actions in chunks of 3 GB": _replace(
            action, shape=(25, 7), dtype="f8", chunks=(60_000_000, 7), maxshape=(None, 7)
        ),
        "actions that unpack to gigabytes": bomb,
        "observations that unpack to 400 MB": many_zeros,
        "actions in another file": link(action, h5py.ExternalLink("elsewhere.hdf5", "/data")),
        "actions in /etc/passwd": _replace(
            action, shape=(25, 7), dtype="f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        ),
        "actions put together from other files": virtual,
        "actions of a link to nothing": link(action, h5py.SoftLink("/nowhere")),
        "actions of a link to itself": link(action, h5py.SoftLink(f"/{action}")),
        "an observation lacks": _replace(seen),
        "an observation is a group": link(seen, lambda f: f["data/demo_0"]),
        "an observation of 9 numbers": _replace(seen, np.zeros((25, 9))),
        "an observation of other rows": _replace(seen, np.zeros((24, 10))),
        "an observation is NaN": _set(seen, (0, 0), np.nan),
        "an observation is text": _replace(seen, np.array([[b"x"] * 10] * 25)),
        "observations that hold themselves": link("data/demo_1/obs", lambda f: f["data"]),
        "no observations": lambda f: f.__delitem__("data/demo_1/obs"),
        "observations are an array": _replace("data/demo_1/obs", np.zeros(3)),
        "a demonstration is an array": _replace("data/demo_1", np.zeros(3)),
        "a demonstration is a link to nothing": link("data/demo_1", h5py.SoftLink("/nowhere")),
        "data is an array": _replace("data", np.zeros(3)),
        "data holds itself": link("data/demo_1", lambda f: f["data"]),
        "no data": lambda f: f.__delitem__("data"),
        "no demonstrations": lambda f: [f.__delitem__(f"data/demo_{i}") for i in range(2)],
        "the mask names nobody": _replace("mask/train", np.array([], "S6")),
        "the mask names a stranger": _replace("mask/train", np.array([b"demo_99"])),
        "the mask is not text": _replace("mask/train", np.array([b"\xff\xfe\x00"])),
        "the mask is a number": _replace("mask/train", 1.0),
        "the mask is a group": link("mask/train", lambda f: f["data"]),
        "mask is an array": _replace("mask", np.zeros(2)),
        "no mask of this name": lambda f: f.__delitem__("mask/train"),
        "a demonstration of a long number": lambda f: f.move("data/demo_1", "data/demo_" + "9" * 5000),
        "a demonstration with a null in its name": lambda f: f.move("data/demo_1/actions", "data/demo_1/act"),
    }


def _meta(path: str, **values: Any) -> Callable[[Path], None]:
    """Items of an array's .zarray, changed; None takes one out."""

    def change(store: Path) -> None:
        file = store / path / ".zarray"
        content = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change


def _chunk(path: str, data: bytes, **values: Any) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        _meta(path, **values)(store)
        for file in (store / path).iterdir():
            if not file.name.startswith("."):
                file.write_bytes(data)

    return change


def _array(path: str, values: np.ndarray) -> Callable[[Path], None]:
    """Another array in the place of one, not compressed."""

    def change(store: Path) -> None:
        shutil.rmtree(store / path)
        (store / path).mkdir()
        meta = {
            "shape": values.shape,
            "chunks": values.shape,
            "dtype": values.dtype.str,
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "compressor": None,
            "zarr_format": 2,
        }
        (store / path / ".zarray").write_text(json.dumps(meta))
        (store / path / ".".join("0" * max(1, values.ndim))).write_bytes(values.tobytes())

    return change


def _stores() -> dict[str, Callable[[Path], object]]:
    action, ends = "data/action", "meta/episode_ends"
    code = pickle.dumps(TouchesCanary())
    plain = {"filters": None, "compressor": None}
    blosc = struct.pack("<BBBBIII", 2, 1, 0x21, 1, 2**31 - 100, 2**20, 5000) + bytes(4984)
    zeros = zlib.compress(bytes(500 << 20), 9)
    return {
        "code in a chunk, unpickled by its filter": _chunk(action, code, filters=[{"id": "pickle"}], compressor=None),
        "code in a chunk, unpickled by its compressor": _chunk(action, code, filters=None, compressor={"id": "pickle"}),
        "code in objects": _chunk(
            action, code, dtype="|O", fill_value=None, filters=[{"id": "pickle"}], compressor=None
        ),
        "code in episode_ends": _chunk(ends, code, filters=[{"id": "pickle"}], compressor=None),
        "code as a fill value": _meta(action, dtype="|O", fill_value=base64.b64encode(code).decode()),
        "objects": _meta(action, dtype="|O"),
        "text": _meta(action, dtype="<U8", fill_value=""),
        "a compound type": _meta(action, dtype=[["x", "<f4"], ["y", "<f4"]], fill_value=None),
        "an unknown type": _meta(action, dtype="<q99"),
        "a type that is a number": _meta(action, dtype=7),
        "times": _meta(action, dtype="<M8[ns]", fill_value="NaT"),
        "an unknown codec": _meta(action, compressor={"id": "wonder"}),
        "a codec that is a list": _meta(action, compressor=[1]),
        "a codec without a name": _meta(action, compressor={}),
        "a codec with settings it does not have": _meta(action, compressor={"id": "blosc", "evil": 1}),
        "10^12 rows": _meta(action, shape=[10**12, 2]),
        "10^30 rows": _meta(action, shape=[10**30, 2]),
        "-1 rows": _meta(action, shape=[-1, 2]),
        "rows are text": _meta(action, shape="many"),
        "rows are a fraction": _meta(action, shape=[30.5, 2]),
        "no shape": _meta(action, shape=...),
        "a shape of 60 axes": _meta(action, shape=[2] * 60, chunks=[2] * 60),
        "chunks of 10^12 rows": _meta(action, chunks=[10**12, 2]),
        "chunks of 0": _meta(action, chunks=[0, 2]),
        "chunks of -1": _meta(action, chunks=[-1, 2]),
        "chunks of other axes": _meta(action, chunks=[30]),
        "chunks that do not hold their rows": _meta(action, chunks=[7, 2]),
        "both of 10^12 rows": _meta(action, shape=[10**12, 2], chunks=[10**12, 2]),
        "format 99": _meta(action, zarr_format=99),
        "a fill value of 10^400": lambda s: (s / action / ".zarray").write_text(
            (s / action / ".zarray").read_text().replace('"fill_value": 0.0', f'"fill_value": 1{"0" * 400}')
        ),
        "a separator of letters": _meta(action, dimension_separator="abc"),
        "metadata nested deep": lambda s: (s / action / ".zarray").write_text("[" * 100_000 + "]" * 100_000),
        "metadata is a list": lambda s: (s / action / ".zarray").write_text("[1]"),
        "attributes nested deep": lambda s: (s / ".zattrs").write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        "a group nested deep": lambda s: (s / "data/.zgroup").write_text("[" * 100_000 + "]" * 100_000),
        "a group of 100,000 digits": lambda s: (s / ".zgroup").write_text('{"zarr_format": ' + "2" * 100_000 + "}"),
        "zarr.json of nonsense": lambda s: (s / "zarr.json").write_text('{"zarr_format": 3, "node_type": "boat"}'),
        "a chunk that claims 2 GB, zipped": _chunk(action, blosc),
        "a chunk that unpacks to 500 MB, zipped": _chunk(
            action, zeros, compressor={"id": "zlib", "level": 9}, filters=None
        ),
        "a chunk of gzip that unpacks to 500 MB": _chunk(
            action, zeros, compressor={"id": "gzip", "level": 9}, filters=None
        ),
        "a chunk of zstd that claims 2^60 bytes": _chunk(
            action,
            b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + bytes(20),
            compressor={"id": "zstd", "level": 1},
            filters=None,
        ),
        "a chunk of lz4 that claims 2 GB": _chunk(
            action, struct.pack("<i", 2**31 - 1) + bytes(60), compressor={"id": "lz4"}, filters=None
        ),
        "a chunk too short": _chunk(action, b"abc", **plain),
        "a chunk too long": _chunk(action, bytes(99_999), **plain),
        "actions lack": lambda s: shutil.rmtree(s / action),
        "actions are a group": lambda s: (
            (s / action / ".zarray").unlink() or (s / action / ".zgroup").write_text('{"zarr_format": 2}')
        ),
        "actions are one number": _array(action, np.array(3.0)),
        "actions of 29 rows": _array(action, np.zeros((29, 2))),
        "actions of 3 axes": _array(action, np.zeros((30, 2, 2))),
        "actions are NaN": _array(action, np.full((30, 2), np.nan)),
        "actions are complex": _array(action, np.zeros((30, 2), "c16")),
        "a state lacks": lambda s: shutil.rmtree(s / "data/state"),
        "a state of 4 numbers": _array("data/state", np.zeros((30, 4))),
        "a state is infinite": _array("data/state", np.full((30, 5), np.inf)),
        "no data": lambda s: shutil.rmtree(s / "data"),
        "no meta": lambda s: shutil.rmtree(s / "meta"),
        "data is an array": _array("data", np.zeros(3)),
        "meta is an array": _array("meta", np.zeros(3)),
        "no ends": lambda s: shutil.rmtree(s / ends),
        "ends fall": _array(ends, np.array([20, 10])),
        "ends repeat": _array(ends, np.array([30, 30])),
        "ends begin at 0": _array(ends, np.array([0, 30])),
        "ends are negative": _array(ends, np.array([-5, 30])),
        "ends of 2^62": _array(ends, np.array([12, 2**62])),
        "ends beyond the data": _array(ends, np.array([12, 31])),
        "ends before the data": _array(ends, np.array([12, 29])),
        "ends are fractions": _array(ends, np.array([12.0, 30.0])),
        "ends are a matrix": _array(ends, np.array([[12, 30]])),
        "ends are one number": _array(ends, np.array(30)),
        "ends of 2^64": _array(ends, np.array([12, 2**64 - 1], "u8")),
        "ends of 10^10 episodes": _meta(ends, shape=[10**10], chunks=[10**10]),
        "ends are empty": _array(ends, np.zeros(0, int)),
    }


def _zips(store: Path) -> Iterator[Made]:
    def packed(folder: Path, compression: int = zipfile.ZIP_STORED, **extra: bytes) -> Path:
        with zipfile.ZipFile(folder / "odd.zarr.zip", "w", compression) as file:
            for path in sorted(store.rglob("*")):
                name = str(path.relative_to(store))
                if path.is_file() and name not in extra:
                    file.write(path, name)
            for name, data in extra.items():
                file.writestr(name, data)
        return folder / "odd.zarr.zip"

    def named(name: str, data: bytes) -> Callable[[Path], Path]:
        return lambda folder: packed(folder, zipfile.ZIP_DEFLATED, **{name: data})

    yield (
        "zarr_zip",
        "a member that unpacks to 700 MB",
        lambda folder: packed(folder, zipfile.ZIP_DEFLATED, **{"data/action/0.0": bytes(700 << 20)}),
    )
    yield "zarr_zip", "metadata that unpacks to 200 MB", named("data/action/.zarray", b" " * (200 << 20))
    yield "zarr_zip", "metadata of blanks", named("data/action/.zarray", b" " * 1000)
    yield "zarr_zip", "the store a folder below, and names outside", lambda folder: _outside(store, folder)
    yield "zarr_zip", "nothing in it", lambda folder: _empty(folder)
    yield "zarr_zip", "no group", named(".zgroup", b"")


def _outside(store: Path, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "outside.zip", "w") as file:
        file.writestr("../canary", b"x")
        file.writestr("/canary", b"x")
        for path in store.rglob("*"):
            if path.is_file():
                file.write(path, f"below/{path.relative_to(store)}")
    return folder / "outside.zip"


def _empty(folder: Path) -> Path:
    zipfile.ZipFile(folder / "empty.zip", "w").close()
    return folder / "empty.zip"
