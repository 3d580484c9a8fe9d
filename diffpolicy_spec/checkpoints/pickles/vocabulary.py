"""What the names in a checkpoint's pickle stand for: the list of all that is read, and how each becomes plain data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffpolicy_spec.checkpoints.errors import CheckpointError, printable
from diffpolicy_spec.checkpoints.pickles.archive import Archive
from diffpolicy_spec.checkpoints.pickles.opcodes import Called, Global, Persistent
from diffpolicy_spec.checkpoints.pickles.stored import StoredTensor

__all__ = ["ALLOWED", "MAX_NODES", "plain"]

MAX_NODES = 300_000
"""Values a payload may hold, counted as often as they are referred to; published ones have some ten thousand."""

_MAX_DEPTH = 100


def plain(value: Any, archive: Archive) -> Any:
    """The plain data that the description of a pickle (`opcodes.decode`) stands for.

    Raises:
        CheckpointError: it describes something else than data, or more of it than a checkpoint holds.
    """
    return _Reader(archive).plain(value)


def _short(value: Any) -> str:
    """A few characters that tell what a value of the file is; never its full text, which may be of any length."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else "a huge number"
    if isinstance(value, tuple):
        return "(" + ", ".join(_short(item) for item in value[:8]) + ")"
    return _short(str(value)) if isinstance(value, Global) else f"a {type(value).__name__}"


_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}
_BUILTINS = ("dict", "list", "tuple", "int", "long", "float", "complex", "str", "unicode", "bool", "bytes", "set",
             "frozenset", "bytearray", "object")  # fmt: skip
_TYPES = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    *(f"torch.{str(dtype).removeprefix('torch.')}" for dtype in _DTYPES.values()),
}
"""Names that are read as their own text, wherever they are not called."""

_NUMPY_KINDS = "biuf"  # bool, int, unsigned, float: nothing that could hold objects


class _Reader:
    """Turns the description of a pickle into plain data."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.nodes = 0

    def plain(self, value: Any, depth: int = 0) -> Any:
        # No memo: data that refers to itself ends here, too, and so does a payload of few bytes that unfolds to many.
        self.nodes += 1
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"its data is nested more than {_MAX_DEPTH} deep")
        if self.nodes > MAX_NODES:
            raise CheckpointError(f"its data unfolds to more than {MAX_NODES} values")
        if value is None or isinstance(value, (str, int, float, bytes)):
            return value
        match value:
            case dict():
                return {key: self.plain(item, depth + 1) for key, item in value.items()}
            case list():
                return [self.plain(item, depth + 1) for item in value]
            case tuple():
                return tuple(self.plain(item, depth + 1) for item in value)
            case Global():
                if str(value) in _TYPES:
                    return str(value)
                raise CheckpointError(f"it holds {value} itself, not a value")
            case Called():
                build = _BUILDERS.get(str(value.function)) if isinstance(value.function, Global) else None
                if build is None:
                    raise CheckpointError(f"it calls {_short(value.function)}, which no checkpoint needs")
                return build(self, value, depth + 1)
            case Persistent():
                raise CheckpointError("it holds a storage that is no tensor's")
            case _:
                return value

    # Containers.

    def mapping(self, called: Called, depth: int) -> dict[Any, Any]:
        items = list(called.items)
        # OrderedDict([(key, value), ...]) and Counter({key: value}); defaultdict(factory) has no entries of its own.
        first = called.args[0] if isinstance(called.args, tuple) and called.args else None
        if isinstance(first, dict):
            items = [*first.items(), *items]
        elif isinstance(first, list):
            items = [*(tuple(pair) for pair in first if isinstance(pair, (list, tuple))), *items]
        if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in items):
            raise CheckpointError(f"its {called.function} does not hold keys and values")
        return {self.key(key): self.plain(item, depth) for key, item in items}

    def key(self, key: Any) -> Any:
        if not isinstance(key, (str, int, float, bytes, type(None))):
            raise CheckpointError(f"its data has a {type(key).__name__} as a key")
        return key

    def sequence(self, called: Called, depth: int) -> list[Any]:
        first = called.args[0] if isinstance(called.args, tuple) and called.args else []
        if not isinstance(first, (list, tuple)):
            raise CheckpointError(f"its {called.function} is not made of a list")
        return [self.plain(item, depth) for item in (*first, *called.items)]

    def omegaconf(self, called: Called, depth: int) -> Any:
        """A DictConfig, ListConfig or node: what it holds; `_metadata` and `_parent` are not looked at."""
        state = called.state
        if not isinstance(state, dict):
            raise CheckpointError(f"its {called.function} has no content")
        content = state.get("_content", state.get("_val"))
        return self.plain(content, depth)

    def name_of_type(self, called: Called, depth: int) -> str:
        """dill's way to name a type: only ever part of `_metadata`."""
        return f"type {self.plain(called.args, depth)}"

    # Bytes and NumPy.

    def encoded(self, called: Called, depth: int) -> bytes:
        match called.args:
            case (str() as text, "latin1" | "latin-1"):
                try:
                    return text.encode("latin-1")
                except UnicodeEncodeError as error:
                    raise CheckpointError("its bytes are damaged") from error
        raise CheckpointError("it encodes text otherwise than as bytes")

    def raw_bytes(self, called: Called, depth: int) -> bytes:
        match called.args:
            case ():
                return b""
            case (Called() | bytes() as inner,):
                value = self.plain(inner, depth)
                if isinstance(value, bytes):
                    return value
        raise CheckpointError("its bytes are damaged")

    def numpy_dtype(self, value: Any) -> np.dtype[Any]:
        if isinstance(value, Called) and str(value.function) == "numpy.dtype" and isinstance(value.args, tuple):
            code, state = value.args[0] if value.args else None, value.state
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
            if isinstance(code, str) and len(code) <= 3 and order in ("<", ">", "|", "="):
                try:
                    dtype = np.dtype(order.replace("|", "=") + code)
                except (TypeError, ValueError):
                    dtype = np.dtype(object)
                if dtype.kind in _NUMPY_KINDS:
                    return dtype
        raise CheckpointError("it holds NumPy values that are not numbers")

    def numpy_scalar(self, called: Called, depth: int) -> Any:
        match called.args:
            case (dtype, data):
                kind, raw = self.numpy_dtype(dtype), self.plain(data, depth)
                if isinstance(raw, bytes) and len(raw) == kind.itemsize:
                    return np.frombuffer(raw, kind)[0]
        raise CheckpointError("a NumPy number in it is damaged")

    def numpy_array(self, called: Called, depth: int) -> Any:
        match called.state:
            case (int(), tuple() as shape, dtype, bool() as fortran, data):
                kind, raw = self.numpy_dtype(dtype), self.plain(data, depth)
                sizes = all(isinstance(n, int) and 0 <= n < 2**40 for n in shape) and len(shape) <= 16
                if sizes and isinstance(raw, bytes) and len(raw) == kind.itemsize * math.prod(shape):
                    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
        raise CheckpointError("a NumPy array in it is damaged")

    # Tensors.

    def tensor(self, called: Called, depth: int) -> StoredTensor:
        match called.args:
            case (Persistent(id=identity), int() as offset, tuple() as shape, tuple() as stride, *_):
                return self.stored(identity, offset, shape, stride)
        raise CheckpointError("a tensor in it is not described as torch.save does")

    def parameter(self, called: Called, depth: int) -> StoredTensor:
        match called.args:
            case (Called(function=Global()) as inner, *_) if str(inner.function) in _TENSORS:
                return self.tensor(inner, depth)
        raise CheckpointError("a parameter in it is not described as torch.save does")

    def stored(self, identity: Any, offset: int, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> StoredTensor:
        match identity:
            case ("storage", Global() as kind, str() as key, str(), int() as count) if str(kind) in _STORAGES:
                dtype = _STORAGES[str(kind)]
            case _:
                raise CheckpointError("a storage in it is not described as torch.save does")
        if key not in self.archive.records:
            raise CheckpointError(f"the storage {_short(key)} that a tensor names is missing")
        size = self.archive.records[key].file_size
        if count * dtype.itemsize != size:
            raise CheckpointError(f"storage {_short(key)} claims {_short(count)} numbers of {dtype}, has {size} bytes")
        whole = all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *stride))
        if not whole or len(shape) != len(stride) or len(shape) > 16:
            raise CheckpointError(f"a tensor in storage {_short(key)} has no valid shape")
        result = StoredTensor(self.archive, key, dtype, shape, offset, stride)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if result.numel and (last >= count or result.numel > count):
            raise CheckpointError(f"a tensor of shape {_short(shape)} reaches beyond its storage {_short(key)}")
        return result

    def size(self, called: Called, depth: int) -> tuple[Any, ...]:
        return tuple(self.sequence(called, depth))

    def text(self, called: Called, depth: int) -> str:
        return f"{called.function}{_short(self.plain(called.args, depth))}"


_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
_SEQUENCES = tuple(f"{m}.{n}" for m in ("builtins", "__builtin__") for n in ("set", "frozenset", "list"))
_OMEGACONF = (
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")),
)  # fmt: skip
_METADATA = ("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata")
_DILL = ("dill._dill._load_type", "dill.dill._load_type")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")

_BUILDERS: dict[str, Callable[[_Reader, Called, int], Any]] = {
    **dict.fromkeys(_TENSORS, _Reader.tensor),
    "torch._utils._rebuild_parameter": _Reader.parameter,
    "torch.Size": _Reader.size,
    "torch.device": _Reader.text,
    **dict.fromkeys(_MAPPINGS, _Reader.mapping),
    **dict.fromkeys(_SEQUENCES, _Reader.sequence),
    **dict.fromkeys(_OMEGACONF, _Reader.omegaconf),
    **dict.fromkeys(_DILL, _Reader.name_of_type),
    "_codecs.encode": _Reader.encoded,
    "builtins.bytes": _Reader.raw_bytes,
    "__builtin__.bytes": _Reader.raw_bytes,
    **{f"{module}.scalar": _Reader.numpy_scalar for module in _MULTIARRAY},
    **{f"{module}._reconstruct": _Reader.numpy_array for module in _MULTIARRAY},
}
ALLOWED = frozenset((*_BUILDERS, *_TYPES, *_STORAGES, *_METADATA, "numpy.dtype", "numpy.ndarray"))
"""Every name that a checkpoint may import."""
