"""The zip file that torch.save writes: one pickle, and one record of raw bytes for each storage.

    <name>/data.pkl     the pickled object; tensors are told by the key of their storage, shape and strides
    <name>/data/<key>   the bytes of a storage
    <name>/byteorder    "little" or "big"; older files have none and are little

Only the pickle is read here. Records are read one at a time, when asked for, and checked by their CRC. Nothing is
allocated before the size that the file claims was compared with the size it has.
"""

from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError, printable

__all__ = ["MAX_PICKLE", "Archive", "open_archive", "read_record"]

MAX_PICKLE = 32 * 2**20
"""Bytes that the pickle without its tensors may have; that of a published checkpoint has about one fiftieth."""

_MAX_DIRECTORY = 16 * 2**20  # 200 000 records; zipfile needs some hundred bytes of memory for each
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")


@dataclass(frozen=True)
class Archive:
    """A torch.save file, its directory read and checked.

    Attributes:
        path: the file.
        size: its bytes.
        pickle: the bytes of data.pkl.
        records: storage key -> its entry in the zip directory.
    """

    path: Path
    size: int
    pickle: bytes = field(repr=False)
    records: Mapping[str, zipfile.ZipInfo] = field(repr=False)


def open_archive(path: str | Path) -> Archive:
    """Read directory and pickle of a torch.save file.

    Raises:
        CheckpointError: missing, truncated, damaged, compressed, of the other byte order, or not such a file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            _check_start(path, file.read(265))
            infos = _directory(path, file, size)
            prefix = _prefix(path, infos)
            _check_entries(path, infos, prefix, size)
            byteorder = infos.get(f"{prefix}byteorder")
            if byteorder is not None:
                _check_byteorder(path, _read_small(path, file, byteorder, size, limit=16))
            data = _read_small(path, file, infos[f"{prefix}data.pkl"], size, limit=MAX_PICKLE)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    start = f"{prefix}data/"
    records = {name[len(start) :]: info for name, info in infos.items() if name.startswith(start)}
    return Archive(path, size, data, records)


def read_record(archive: Archive, key: str) -> Tensor:
    """The bytes of one storage, in memory of their own: a file that is replaced later does not change them.

    Returns:
        (n,) uint8.

    Raises:
        CheckpointError: no such record, or it is truncated or damaged.
    """
    info = archive.records.get(key)
    if info is None:
        raise CheckpointError(f"{archive.path} lacks the storage '{printable(key)}' that its tensors name")
    try:
        with archive.path.open("rb") as file:
            offset = _locate(archive.path, file, info, archive.size)
            data = torch.empty(info.file_size, dtype=torch.uint8)
            _fill(archive.path, file, info, offset, data.numpy().data)
            return data
    except OSError as error:
        raise CheckpointError(f"{archive.path} cannot be read: {error.strerror or error}") from error


def _read_small(path: Path, file: BinaryIO, info: zipfile.ZipInfo, size: int, limit: int) -> bytes:
    if info.file_size > limit:
        name = printable(info.filename)
        raise CheckpointError(f"{path}: '{name}' has {info.file_size} bytes, more than the {limit} that are read")
    offset = _locate(path, file, info, size)
    data = bytearray(info.file_size)
    _fill(path, file, info, offset, memoryview(data))
    return bytes(data)


def _locate(path: Path, file: BinaryIO, info: zipfile.ZipInfo, size: int) -> int:
    """Where the entry's bytes begin; all of them are within the file."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path} is damaged: '{printable(info.filename)}' is not where its directory says")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    offset = info.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
    if offset + info.file_size > size:
        raise CheckpointError(f"{path} is truncated: '{printable(info.filename)}' reaches beyond its end")
    return offset


def _fill(path: Path, file: BinaryIO, info: zipfile.ZipInfo, offset: int, buffer: memoryview) -> None:
    file.seek(offset)
    if file.readinto(buffer) != info.file_size:  # type: ignore[attr-defined]
        raise CheckpointError(f"{path} is truncated: '{printable(info.filename)}' reaches beyond its end")
    # torch.serialization.set_crc32_options(False) writes 0.
    if info.CRC and zlib.crc32(buffer) != info.CRC:
        name = printable(info.filename)
        raise CheckpointError(f"{path} is damaged: the checksum of '{name}' does not fit its bytes")


def _check_start(path: Path, start: bytes) -> None:
    if start.startswith(b"PK"):
        return
    if not start:
        raise CheckpointError(f"{path} is empty")
    old = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in start[:16] or start[257:262] == b"ustar"
    if old:
        raise CheckpointError(
            f"{path} is of torch.save's old format, which is not read here: in the environment that wrote it, "
            "torch.save(torch.load(path), new_path) writes today's"
        )
    if start[:1] == b"\x80":
        raise CheckpointError(f"{path} is a bare pickle, not written by torch.save: it is not read")
    raise CheckpointError(f"{path} is not a file written by torch.save (a zip file): it starts with {start[:8]!r}")


def _directory(path: Path, file: BinaryIO, size: int) -> dict[str, zipfile.ZipInfo]:
    length = _directory_length(file, size)
    if length is None:
        raise CheckpointError(f"{path} is truncated: the directory at the end of the zip file is missing")
    if length > min(size, _MAX_DIRECTORY):
        raise CheckpointError(f"{path}: its zip directory claims {length} bytes of {size}, more than are read")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is a damaged zip file (truncated?): {error}") from error
    names = {info.filename: info for info in infos}
    if len(names) != len(infos):
        raise CheckpointError(f"{path}: a name stands twice in its zip directory: it is not read")
    return names


def _directory_length(file: BinaryIO, size: int) -> int | None:
    """What the end record claims as the directory's size; None without an end record."""
    start = max(0, size - _END.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + _END.size:
        return None
    length = _END.unpack_from(tail, at)[5]
    if length != 0xFFFFFFFF:
        return int(length)
    if at < _LOCATOR.size or not tail.startswith(b"PK\x06\x07", at - _LOCATOR.size):
        return None
    file.seek(min(_LOCATOR.unpack_from(tail, at - _LOCATOR.size)[2], size))
    record = file.read(_END64.size)
    if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
        return None
    return int(_END64.unpack(record)[8])


def _prefix(path: Path, infos: Mapping[str, zipfile.ZipInfo]) -> str:
    found = [name[: -len("data.pkl")] for name in infos if name == "data.pkl" or name.endswith("/data.pkl")]
    if not found:
        raise CheckpointError(f"{path} is a zip file, but not one of torch.save: it holds no data.pkl")
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} pickles named data.pkl: it is not read")
    if f"{found[0]}constants.pkl" in infos:
        raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint")
    return found[0]


def _check_entries(path: Path, infos: Mapping[str, zipfile.ZipInfo], prefix: str, size: int) -> None:
    for name, info in infos.items():
        if not name.startswith((f"{prefix}data.pkl", f"{prefix}data/", f"{prefix}byteorder")):
            continue
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise CheckpointError(
                f"{path}: '{printable(name)}' is compressed or encrypted, which torch.save never does: it is not read"
            )
        if info.header_offset + _LOCAL_HEADER.size + info.file_size > size:
            raise CheckpointError(f"{path} is truncated: '{printable(name)}' reaches beyond its end")


def _check_byteorder(path: Path, order: bytes) -> None:
    if order.strip() != sys.byteorder.encode():
        raise CheckpointError(
            f"{path} holds numbers of byte order {order!r}, this machine's is '{sys.byteorder}': "
            "save it again on a machine of this byte order"
        )
