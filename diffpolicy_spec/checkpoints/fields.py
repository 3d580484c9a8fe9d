"""Settings of a stranger's configuration, read one by one and checked: whatever stands there, the error names it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffpolicy_spec.checkpoints.errors import CheckpointError

__all__ = ["LARGEST", "Fields", "parse_json", "read_json"]

LARGEST = 1_000_000
"""No size in a policy's configuration is larger: what is, is damage or an attempt to fill the memory."""

_LARGEST_FILE = 16 * 2**20
_MISSING = object()


def read_json(file: Path) -> Fields:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, too large, or holds no JSON object.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the checkpoint folder is incomplete")
    if file.stat().st_size > _LARGEST_FILE:
        raise CheckpointError(f"{file} has {file.stat().st_size} bytes: too large for a configuration")
    return parse_json(file.read_bytes(), str(file))


def parse_json(text: str | bytes, where: str) -> Fields:
    """The object in a JSON text; `where` names it in errors.

    Raises:
        CheckpointError: no valid JSON, nested too deeply, or something else than an object.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{where} is not valid JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise CheckpointError(f"{where} is not valid JSON (truncated or damaged?): {error}") from error
    return Fields(value, where)


class Fields:
    """A mapping of names to settings, each read as what it must be.

    Args:
        values: the mapping; anything else is a CheckpointError.
        where: what it is, for errors: a file, and the way to the mapping in it.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{where} must be a mapping of names to settings, got {_kind(values)}")
        self.values, self.where = values, where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (str(name) for name in self.values)

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """As it stands there; null counts as not given. Without a default it must be there."""
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise CheckpointError(f"{self.where} lacks '{name}'")
        return default

    def integer(self, name: str, default: Any = _MISSING, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            raise self._wrong(name, value, "a whole number")
        if not least <= value <= most:
            raise self._wrong(name, value, f"from {least} to {most}")
        return int(value)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(name, value, "a finite number")
        return float(value)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def choice(self, name: str, known: tuple[str, ...], default: Any = _MISSING) -> str:
        """One of the known strings."""
        value = self.text(name, default)
        if value not in known:
            raise self._wrong(name, value, f"one of {', '.join(known)} to be read here")
        return value

    def sizes(self, name: str, default: Any = _MISSING, *, count: int | None = None) -> tuple[int, ...]:
        """A list of positive whole numbers, `count` of them or at least one."""
        value = self.get(name, default)
        told = "a list of " + ("positive sizes" if count is None else f"{count} positive sizes")
        if not isinstance(value, (list, tuple)) or not value or len(value) != (count or len(value)) or len(value) > 64:
            raise self._wrong(name, value, told)
        if any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= LARGEST for n in value):
            raise self._wrong(name, value, told)
        return tuple(value)

    def names(self, name: str, default: Any = _MISSING) -> tuple[str, ...]:
        """A list of strings, which may be empty."""
        value = self.get(name, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of names")
        return tuple(value)

    def section(self, name: str, default: Any = _MISSING) -> Fields:
        """A mapping inside this one."""
        return Fields(self.get(name, default), f"{self.where}: {name}")

    def sections(self, name: str) -> list[Fields]:
        """A list of mappings."""
        value = self.get(name)
        if not isinstance(value, (list, tuple)):
            raise self._wrong(name, value, "a list")
        return [Fields(item, f"{self.where}: {name}[{i}]") for i, item in enumerate(value)]

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: '{name}' must be {expected}, got {_kind(value)}")


def _kind(value: Any) -> str:
    """The value, shortened: a number of ten thousand digits or a page of text helps nobody."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number of absurd size"
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."
