"""Tensors of a safetensors file, read one by one: nothing is in memory twice, and nothing stays mapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.shapes_only import is_left_out

__all__ = ["read_tensors"]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory of their own.

    The file is not mapped: one that is replaced later must not change a loaded policy.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or has a data type that is not read here.
    """
    import safetensors

    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the checkpoint folder is incomplete")
    try:
        with safetensors.safe_open(file, framework="pt"):
            pass  # that the header is sound, and goes with the file's size
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            start = stream.tell()
            layout = {name: told for name, told in header.items() if name != "__metadata__"}
            unknown = sorted({told["dtype"] for told in layout.values()} - set(_DTYPES))
            if unknown:
                raise CheckpointError(f"{file} has tensors of {', '.join(unknown)}, which are not read here")
            return {name: _read(stream, start, told) for name, told in layout.items()}
    except CheckpointError:
        raise
    except Exception as error:  # SafetensorError is not a subclass of anything narrower
        raise CheckpointError(f"{file} is not a readable safetensors file (truncated or damaged?): {error}") from error


def _read(stream: BinaryIO, start: int, told: dict[str, Any]) -> Tensor:
    begin, end = told["data_offsets"]
    if is_left_out(end - begin):
        return torch.empty(told["shape"], dtype=_DTYPES[told["dtype"]], device="meta")
    tensor = torch.empty(told["shape"], dtype=_DTYPES[told["dtype"]])
    stream.seek(start + begin)
    read = stream.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
    if read != end - begin or read != tensor.nbytes:
        raise EOFError("it is shorter than its header says")
    return tensor
