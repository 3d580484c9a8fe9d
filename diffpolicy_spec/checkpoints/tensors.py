"""Tensors of a safetensors file, read one by one: nothing is in memory twice, and nothing stays mapped."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError

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
        with safetensors.safe_open(file, framework="pt") as opened:  # checks the header against the file's size
            names = opened.offset_keys()  # in the order of their bytes, which leave no gaps
            told = [opened.get_slice(name) for name in names]
            layout = [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in zip(names, told, strict=True)]
    except Exception as error:  # SafetensorError is not a subclass of anything narrower
        raise CheckpointError(f"{file} is not a readable safetensors file (truncated or damaged?): {error}") from error
    unknown = sorted({dtype for _, _, dtype in layout} - set(_DTYPES))
    if unknown:
        raise CheckpointError(f"{file} has tensors of {', '.join(unknown)}, which are not read here")
    tensors = {}
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        for name, shape, dtype in layout:
            tensor = torch.empty(shape, dtype=_DTYPES[dtype])
            size = math.prod(shape) * tensor.element_size()
            if stream.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) != size:
                raise CheckpointError(f"{file} is shorter than it was when it was opened")
            tensors[name] = tensor
    return tensors
