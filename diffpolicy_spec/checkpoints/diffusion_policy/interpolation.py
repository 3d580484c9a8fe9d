"""OmegaConf's interpolations in a plain dict, resolved without OmegaConf and without running anything.

${a.b}, ${a[0]}, ${.x}, ${..x}      what stands there; from the root, beside this value, one level up
${eval:'${a}+1'}                    arithmetic, see `arithmetic.calculate`
${oc.select:a.b,default}            what stands there, or the default
${now:...}, ${hydra:...}, others    left as text: they depend on who runs it, and when
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffpolicy_spec.checkpoints.diffusion_policy.arithmetic import MAX_LENGTH, calculate
from diffpolicy_spec.checkpoints.errors import CheckpointError

__all__ = ["resolve"]

_MAX_DEPTH, _MAX_NODES = 50, 100_000
_RESOLVER = re.compile(r"\s*([A-Za-z_][\w.]*)\s*:(.*)", re.DOTALL)
_KEYS = re.compile(r"[^.\[\]]+")
_CONSTANTS = {"null": None, "none": None, "true": True, "false": False}

_Path = tuple[str, ...]


def resolve(config: Mapping[str, Any], key: str = "") -> Any:
    """What stands at a dotted key, its interpolations resolved; "" for the whole.

    Args:
        config: dicts, lists and plain values; not changed.
        key: "policy.model", say. What stands elsewhere is resolved only as far as this needs it.

    Returns:
        New dicts and lists. A value that is one interpolation has the type of what it refers to; within other text
        it is written out.

    Raises:
        CheckpointError: a key that is not there, a circle, an expression that is not plain arithmetic, or a config
            that unfolds without end.
    """
    return _Resolver(config).at(tuple(key.split(".")) if key else ())


class _Resolver:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.active: list[_Path] = []
        self.nodes = 0

    def at(self, path: _Path) -> Any:
        node: Any = self.root
        for i, part in enumerate(path):
            if _is_open(node):  # the way leads through an interpolation: what it gives is resolved already
                node = self.text(node, path[:i])
                for rest in path[i:]:
                    node = self.step(node, rest, path)
                return node
            node = self.step(node, part, path)
        return self.value(node, path)

    def step(self, node: Any, part: str, path: _Path) -> Any:
        if isinstance(node, Mapping) and part in node:
            return node[part]
        if part.isdecimal() and len(part) < 10:
            index = int(part)
            if isinstance(node, Mapping) and index in node:
                return node[index]
            if isinstance(node, (list, tuple)) and index < len(node):
                return node[index]
        by = f", to which '{_told(self.active[-1])}' refers" if self.active else ""
        raise _Missing(f"its config has no '{_told(path)}'{by}")

    def value(self, node: Any, path: _Path) -> Any:
        self.count(path)
        if isinstance(node, Mapping):
            return {key: self.value(item, (*path, str(key))) for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return [self.value(item, (*path, str(i))) for i, item in enumerate(node)]
        return self.text(node, path) if _is_open(node) else node

    def count(self, path: _Path) -> None:
        self.nodes += 1
        if self.nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise CheckpointError("its config unfolds to more values than a config has")

    def text(self, text: str, path: _Path) -> Any:
        """The value of a text with interpolations that stands at `path`."""
        if path in self.active:
            circle = " -> ".join(_told(p) for p in (*self.active[self.active.index(path) :], path)[:8])
            raise CheckpointError(f"its config refers to itself: {circle}")
        if len(self.active) >= _MAX_DEPTH:
            raise CheckpointError(f"its config refers on and on, more than {_MAX_DEPTH} times, at '{_told(path)}'")
        self.active.append(path)
        try:
            pieces = _pieces(text)
            if len(pieces) == 1 and pieces[0][0]:
                return self.interpolation(pieces[0][1], path, 0)
            return self.joined(pieces, path, 0)
        finally:
            self.active.pop()

    def joined(self, pieces: list[tuple[bool, str]], path: _Path, depth: int) -> str:
        """Pieces written one after the other, as text."""
        out, length = [], 0
        for is_interpolation, piece in pieces:
            value = self.interpolation(piece, path, depth) if is_interpolation else piece
            if isinstance(value, (dict, list)):
                raise CheckpointError(f"its config writes a {type(value).__name__} into the text at '{_told(path)}'")
            out.append(str(value))
            length += len(out[-1])
            if length > 10 * MAX_LENGTH:
                raise CheckpointError(f"its config has a text without end at '{_told(path)}'")
        return "".join(out)

    def interpolation(self, body: str, path: _Path, depth: int) -> Any:
        """The value of what stands between `${` and `}`."""
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"its config nests interpolations too deeply at '{_told(path)}'")
        self.count(path)
        match = _RESOLVER.fullmatch(body)
        if match is None:
            return self.at(_absolute(self.joined(_pieces(body), path, depth + 1), path))
        name, argument = match[1], match[2].strip()
        if name == "eval":
            expression = self.joined(_pieces(_unquoted(argument)), path, depth + 1)
            try:
                return calculate(expression)
            except CheckpointError as error:
                raise CheckpointError(f"its config, '{_told(path)}': {error}") from error
        if name == "oc.select":
            key, comma, default = self.joined(_pieces(argument), path, depth + 1).partition(",")
            try:
                return self.at(_absolute(key, path))
            except _Missing:
                return _constant(default.strip()) if comma else None
        return "${" + body + "}"


class _Missing(CheckpointError):
    """A key that is not in the config."""


def _is_open(node: Any) -> bool:
    return isinstance(node, str) and "${" in node


def _pieces(text: str) -> list[tuple[bool, str]]:
    """(False, plain text) and (True, inside of an interpolation), in order."""
    pieces, at = [], 0
    while True:
        start = text.find("${", at)
        if start < 0:
            break
        if start > 0 and text[start - 1] == "\\":  # \${ is text
            pieces.append((False, text[at : start - 1] + "${"))
            at = start + 2
            continue
        end = _closing(text, start + 2)
        if start > at:
            pieces.append((False, text[at:start]))
        pieces.append((True, text[start + 2 : end]))
        at = end + 1
    return [*pieces, (False, text[at:])] if at < len(text) or not pieces else pieces


def _closing(text: str, at: int) -> int:
    depth = 1
    for i in range(at, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    raise CheckpointError(f"its config has an interpolation without an end: {text[:80]!r}")


def _absolute(key: str, path: _Path) -> _Path:
    """The path that a key means in a value at `path`: one leading dot is beside it, each further one a level up."""
    key = key.strip()
    up = len(key) - len(key.lstrip("."))
    if up > len(path):
        raise CheckpointError(f"its config refers beyond its root: '{key[:80]}' at '{_told(path)}'")
    return (*(path[: len(path) - up] if up else ()), *(part.strip(" '\"") for part in _KEYS.findall(key)))


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("\\" + text[0], text[0])
    return text


def _constant(text: str) -> Any:
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return _unquoted(text)


def _told(path: _Path) -> str:
    return ".".join(path)[:200] or "the whole"
