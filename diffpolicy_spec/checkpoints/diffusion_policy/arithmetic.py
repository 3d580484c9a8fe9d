"""The arithmetic that diffusion_policy's configs hold as text, worked out without Python's eval.

Numbers, text in quotes, True, False, None; + - * / // % **, comparisons, and, or, not, `x if c else y`, parentheses.
There are no names, calls, attributes or subscripts.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from diffpolicy_spec.checkpoints.errors import CheckpointError

__all__ = ["MAX_LENGTH", "calculate"]

MAX_LENGTH = 1000
"""Characters that an expression may have, and each text that comes out of it."""

_MAX_NUMBER, _MAX_POWER = 10**18, 64

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


def calculate(text: str) -> Any:
    """The value of an expression: "2+8-1" -> 9, '10 if True or False else 20 + 10' -> 10.

    Raises:
        CheckpointError: anything but the arithmetic above, or values out of all proportion.
    """
    if len(text) > MAX_LENGTH:
        raise CheckpointError(f"an expression of {len(text)} characters is not worked out")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except CheckpointError as error:
        raise CheckpointError(f"{text[:200]!r} is not worked out: {error}") from error
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise CheckpointError(f"{text[:200]!r} is not worked out: {reason}") from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return _checked(value)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _checked(_binary(op, _value(left), _value(right)))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            value = _value(operand)
            if not isinstance(sign, ast.Not):
                _number(value)
            return _UNARY[type(sign)](value)
        case ast.BoolOp(op=ast.And(), values=values):
            return _first(values, stop=False)
        case ast.BoolOp(op=ast.Or(), values=values):
            return _first(values, stop=True)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body) if _value(test) else _value(orelse)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _compare(_value(left), ops, comparators)
        case ast.Name(id=name):
            raise CheckpointError(f"'{name[:60]}' is a name, and there are none; text stands in quotes")
        case ast.Call() | ast.Attribute() | ast.Subscript():
            raise CheckpointError("it asks for more than arithmetic, and nothing of it was run")
    raise CheckpointError(f"{type(node).__name__} is not arithmetic that is known here")


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    if not (isinstance(op, ast.Add) and isinstance(left, str) and isinstance(right, str)):
        _number(left)
        _number(right)
    if isinstance(op, ast.Pow) and abs(right) > _MAX_POWER:
        raise CheckpointError(f"a power of {right} is too large")
    return _BINARY[type(op)](left, right)


def _first(values: list[ast.expr], stop: bool) -> Any:
    """Python's `and` and `or`: the first value whose truth is `stop`, else the last."""
    value = None
    for node in values:
        value = _value(node)
        if bool(value) is stop:
            break
    return value


def _compare(left: Any, ops: list[ast.cmpop], comparators: list[ast.expr]) -> bool:
    for op, node in zip(ops, comparators, strict=True):
        right = _value(node)
        if type(op) not in _COMPARISONS:
            raise CheckpointError(f"{type(op).__name__} is not a comparison that is known here")
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def _number(value: Any) -> None:
    if not isinstance(value, (int, float)):
        raise CheckpointError(f"{value!r} is not a number")


def _checked(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        if isinstance(value, str) and len(value) > MAX_LENGTH:
            raise CheckpointError("a text in it is too long")
        return value
    _number(value)
    if not abs(value) <= _MAX_NUMBER:
        raise CheckpointError("a number in it is too large")
    return value
