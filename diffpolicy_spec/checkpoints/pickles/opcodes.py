"""A pickle as inert data: read by its opcodes, never executed.

`pickle.load` runs a small program that may call any function of any module. Here the same opcodes build a description:
what would be imported becomes a `Global` that holds two strings, what would be called or instantiated becomes a
`Called`. No module is imported and no function of the file's choice is called, whatever the file says; who reads
the description decides what it stands for.
"""

from __future__ import annotations

import pickletools
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from diffpolicy_spec.checkpoints.errors import CheckpointError, printable

__all__ = ["MAX_OPCODES", "Called", "Global", "Persistent", "decode"]

MAX_OPCODES = 1_000_000
"""Opcodes a pickle may have (a tensor takes about 35): they bound what a description takes, about 200 bytes each."""


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """What the pickle would import: `module.name`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Called:
    """What the pickle would call or instantiate.

    Attributes:
        function: usually a `Global`.
        args: its arguments, usually a tuple.
        state: what it would be given by `__setstate__` or as attributes; None for nothing.
        items: what would be appended, or (key, value) pairs that would be set.
    """

    function: Any
    args: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class Persistent:
    """Something outside of the pickle, by its id: torch's storages."""

    id: Any


def decode(data: bytes, allowed: Container[str]) -> Any:
    """Describe a pickle.

    Args:
        allowed: the names ("collections.OrderedDict") that it may want to import.

    Returns:
        Plain data, `Global`s, `Called`s and `Persistent`s; it may hold itself.

    Raises:
        CheckpointError: it names something else, wherever and for whatever; it is truncated or damaged; or it has
            opcodes that do not occur in checkpoints.
    """
    machine = _Machine()
    try:
        value = machine.run(data)
    except CheckpointError:
        _refuse(machine.imports, allowed)
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        _refuse(machine.imports, allowed)
        raise CheckpointError(f"its pickle is damaged or truncated ({_first_line(error)})") from error
    _refuse(machine.imports, allowed)
    return value


def _refuse(imports: list[str], allowed: Container[str]) -> None:
    strangers = list(dict.fromkeys(name for name in imports if name not in allowed))
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        names = ", ".join(printable(name) for name in strangers[:5]) + more
        raise CheckpointError(
            f"its pickle wants to import {names}, which no checkpoint needs. Nothing of it was imported or run. If you "
            "trust the file, save its state dicts and plain settings only, in the environment that wrote it"
        ) from None


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_NOTHING = frozenset(("PROTO", "FRAME"))
_KEYS = (str, int, float, bytes, type(None))


class _Machine:
    """The stack, the marks and the memo of the pickle machine (Python's pickletools describes each opcode)."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.imports: list[str] = []

    def run(self, data: bytes) -> Any:
        end = 0
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise CheckpointError(f"its pickle has more than {MAX_OPCODES} opcodes: it is not read")
            if opcode.name != "STOP":
                self.step(opcode.name, argument)
            end = (position or 0) + 1
        value = self.stack.pop()
        if end != len(data) or self.stack or self.marked:
            raise CheckpointError("its pickle is damaged: something is left over at its end")
        return value

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name not in _NOTHING:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise CheckpointError(f"its pickle has the opcode {name}, which no checkpoint needs: it is not read")
            if argument is None:
                method()
            else:
                method(argument)

    def from_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def do_mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def do_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.from_mark()

    def do_pop_mark(self) -> None:
        self.from_mark()

    def do_dup(self) -> None:
        self.stack.append(self.stack[-1])

    # The memo.

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binput = do_long_binput = do_put
    do_binget = do_long_binget = do_get

    # Containers.

    def do_empty_list(self) -> None:
        self.stack.append([])

    def do_empty_dict(self) -> None:
        self.stack.append({})

    def do_empty_set(self) -> None:
        self.stack.append(Called(Global("builtins", "set"), ()))

    def do_frozenset(self) -> None:
        items = self.from_mark()
        self.stack.append(Called(Global("builtins", "frozenset"), (items,)))

    def do_list(self) -> None:
        items = self.from_mark()  # which puts another list in place of self.stack
        self.stack.append(items)

    def do_tuple(self) -> None:
        items = self.from_mark()
        self.stack.append(tuple(items))

    def do_tuple1(self) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def do_tuple2(self) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def do_tuple3(self) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def do_dict(self) -> None:
        items = self.from_mark()
        self.stack.append({})
        self._set(items)

    def do_append(self) -> None:
        self._add([self.stack.pop()])

    def do_appends(self) -> None:
        self._add(self.from_mark())

    do_additems = do_appends

    def do_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def do_setitems(self) -> None:
        self._set(self.from_mark())

    def _add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Called):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise CheckpointError(f"its pickle is damaged: it appends to a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, (dict, Called)):
            raise CheckpointError(f"its pickle is damaged: it sets items of a {type(target).__name__}")
        pairs = list(zip(items[::2], items[1::2], strict=True))
        for key, _ in pairs:
            if not _can_be_key(key):
                raise CheckpointError(f"its pickle has a {type(key).__name__} as a key: it is not read")
        if isinstance(target, dict):
            target.update(pairs)
        else:
            target.items.extend(pairs)

    # What would import and call.

    def _import(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise CheckpointError("its pickle wants to import something that is not named by text: it is not read")
        self.imports.append(f"{module}.{name}")
        self.stack.append(Global(module, name))

    def do_global(self, argument: str) -> None:
        self._import(*argument.split(" ", 1))

    def do_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._import(module, name)

    def do_inst(self, argument: str) -> None:
        args = tuple(self.from_mark())
        self._import(*argument.split(" ", 1))
        self.stack.append(Called(self.stack.pop(), args))

    def do_obj(self) -> None:
        function, *args = self.from_mark()
        self.stack.append(Called(function, tuple(args)))

    def do_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Called(function, args))

    do_newobj = do_reduce

    def do_newobj_ex(self) -> None:
        keywords, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Called(function, (args, keywords)))

    def do_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Called) or target.state is not None:
            raise CheckpointError(f"its pickle sets the state of a {type(target).__name__}: it is not read")
        target.state = state

    def do_binpersid(self) -> None:
        self.stack.append(Persistent(self.stack.pop()))


def _can_be_key(value: Any) -> bool:
    """Only what is hashed quickly: the hash of a tuple that is nested deeply overflows the C stack."""
    return isinstance(value, _KEYS) or (isinstance(value, tuple) and all(isinstance(item, _KEYS) for item in value))


def _first_line(error: Exception) -> str:
    return ascii(str(error).partition("\n")[0][:120])
