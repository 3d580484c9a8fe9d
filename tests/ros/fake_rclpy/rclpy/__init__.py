"""A double of rclpy for the node's tests, as far as it is used: one process is the whole graph.

Like the original: callbacks run in the thread that spins; a publisher and a subscription meet only where their
reliabilities allow it; lifecycle callbacks decide by what they return, and one that raises is an error.
"""

from __future__ import annotations

import itertools
from typing import Any

import yaml

_running = False
_overrides: dict[str, Any] = {}


def init(args: list[str] | None = None, *, signal_handler_options: Any = None) -> None:
    """Begin; takes `--ros-args -p name:=value`. Signals are left to Python, whatever is asked for."""
    global _running
    if _running:
        raise RuntimeError("Context.init() must only be called once")
    _running = True
    _overrides.clear()
    words = list(args or [])
    words = words[words.index("--ros-args") + 1 :] if "--ros-args" in words else []
    for flag, word in itertools.pairwise(words):
        if flag == "-p":
            name, _, value = word.partition(":=")
            _overrides[name] = yaml.safe_load(value)


def ok() -> bool:
    """Whether it has begun and not ended."""
    return _running


def shutdown() -> None:
    """End: whoever spins returns."""
    global _running
    if not _running:
        raise RuntimeError("rcl_shutdown already called")
    _running = False


def try_shutdown() -> None:
    """As shutdown, where it has not happened."""
    if ok():
        shutdown()


def create_node(name: str) -> Any:
    """A plain node."""
    from rclpy.node import Node

    return Node(name)
