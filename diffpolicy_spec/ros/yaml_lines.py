"""YAML whose every value knows its line, so that a mistake is told where it is."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffpolicy_spec.optional import require

__all__ = ["ContractError", "Entry", "Section", "read_yaml"]

MAX_DEPTH = 20
MAX_ENTRIES = 20_000


class ContractError(ValueError):
    """A contract that cannot be; the message has file, line, what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A value of the file.

    Attributes:
        value: a scalar, a list of entries, or text -> entry.
        line: counted from 1. path: as "actions[0].joints". file: its name, for messages.
    """

    value: Any
    line: int
    path: str
    file: str

    def error(self, message: str) -> ContractError:
        """What to raise."""
        return ContractError(f"{self.file}:{self.line}: {self.path or 'contract'}: {message}")

    def items(self, what: str = "a list") -> list[Entry]:
        """The entries of a list."""
        if not isinstance(self.value, list):
            raise self.error(f"must be {what}, got {self._shown()}")
        return self.value

    def text(self, what: str = "text") -> str:
        """Text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"must be {what}, got {self._shown()}")
        return self.value

    def texts(self, what: str = "a list of names") -> tuple[str, ...]:
        """A list of texts, none twice."""
        names = [entry.text("a name") for entry in self.items(what)]
        if not names:
            raise self.error(f"must be {what}, got none")
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self.items()[i].error(f"{name!r} is named twice")
        return tuple(names)

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number within bounds."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            hint = " (YAML takes 1e-3 for text: write 1.0e-3)" if isinstance(value, str) else ""
            raise self.error(f"must be a number, got {self._shown()}{hint}")
        if not low <= value <= high:
            bounds = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            raise self.error(f"must be {bounds}, got {value:g}")
        return float(value)

    def integer(self, low: int, high: int) -> int:
        """A whole number within bounds."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.error(f"must be a whole number, got {self._shown()}")
        return int(self.number(low, high))

    def flag(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"must be true or false, got {self._shown()}")
        return self.value

    def choice(self, allowed: Sequence[Any]) -> Any:
        """One of `allowed`."""
        if isinstance(self.value, list | dict) or self.value not in allowed or isinstance(self.value, bool):
            raise self.error(
                f"must be one of {', '.join(map(str, allowed))}, got {self._shown()}{_like(self, allowed)}"
            )
        return self.value

    def numbers(self) -> float | tuple[float, ...]:
        """A number, or a list of them."""
        if isinstance(self.value, list):
            return tuple(entry.number() for entry in self.value)
        return self.number()

    def plain(self) -> Any:
        """As lists, dicts and scalars."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        return [entry.plain() for entry in self.value] if isinstance(self.value, list) else self.value

    def _shown(self) -> str:
        if isinstance(self.value, dict):
            return "a mapping"
        return "a list" if isinstance(self.value, list) else "nothing" if self.value is None else repr(self.value)[:80]


class Section:
    """A mapping that is read key by key; what is left over at the end is a mistake."""

    def __init__(self, entry: Entry) -> None:
        if not isinstance(entry.value, dict):
            raise entry.error(f"must be a mapping of `name: value`, got {entry._shown()}")
        self.entry = entry
        self._left = dict(entry.value)
        self._asked: list[str] = []

    def take(self, key: str) -> Entry | None:
        """The entry of a key; None where it is not there or null."""
        self._asked.append(key)
        entry = self._left.pop(key, None)
        return None if entry is None or entry.value is None else entry

    def need(self, key: str, what: str) -> Entry:
        """The entry of a key that has to be there; what: what it is for, for the message."""
        entry = self.take(key)
        if entry is None:
            raise self.entry.error(f"`{key}` is missing: {what}")
        return entry

    def rest(self) -> dict[str, Entry]:
        """All that was not taken."""
        left, self._left = self._left, {}
        return left

    def finish(self) -> None:
        """Raise if a key was never asked for."""
        for key, entry in self._left.items():
            known = ", ".join(self._asked)
            raise entry.error(f"there is no setting {key!r}{_close(key, self._asked)}; there are: {known}")


def _close(given: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(given), [str(name) for name in names], n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _like(entry: Entry, allowed: Sequence[Any]) -> str:
    return _close(entry.value, allowed) if isinstance(entry.value, str) else ""


def read_yaml(text: str, file: str) -> Entry:
    """Read YAML, keeping lines.

    Args:
        text: the file's content. file: its name, for messages.

    Raises:
        ContractError: no YAML, a key twice, a key that is no text, or nested deeper than anybody writes.
    """
    yaml = require("yaml", extra="ros", needed_by="a contract")
    loader = yaml.SafeLoader(text)
    count = 0

    def convert(node: Any, path: str, depth: int) -> Entry:
        nonlocal count
        count += 1
        here = Entry(None, node.start_mark.line + 1, path, file)
        if depth > MAX_DEPTH or count > MAX_ENTRIES:  # aliases can make much of little
            raise here.error("is nested too deep or has too many entries for a contract")
        if isinstance(node, yaml.SequenceNode):
            values: Any = [convert(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            values = {}
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
                if not isinstance(key, str):
                    raise here.error(f"line {key_node.start_mark.line + 1}: names must be text, got {key!r}; quote it")
                entry = convert(value_node, f"{path}.{key}" if path else key, depth + 1)
                # The line of the key: of a block below it, the value begins later.
                entry = Entry(entry.value, key_node.start_mark.line + 1, entry.path, file)
                if key in values:
                    raise entry.error(f"is there twice, in line {values[key].line} as well")
                values[key] = entry
        else:
            values = loader.construct_object(node)
        return Entry(values, here.line, path, file)

    try:
        node = loader.get_single_node()
        if node is None:
            raise ContractError(f"{file}:1: the contract is empty")
        return convert(node, "", 0)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ContractError(f"{file}:{line}: this is no YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ContractError(f"{file}: this is no YAML: {error}") from None
    except ValueError as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(f"{file}: {error}") from None
    finally:
        loader.dispose()
