"""Modules that are imported where they are used; a missing one names the extra that brings it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

__all__ = ["on_demand", "require"]


def on_demand(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when they are first asked for.

    Args:
        package: its `__name__`.
        where: name -> the package's module that has it.
    """
    names = sys.modules[package].__dict__

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{where[name]}", package), name)
        names[name] = value
        return value

    return get, lambda: sorted({*names, *where})


def require(module: str, extra: str, needed_by: str | None = None) -> ModuleType | Any:
    """Import an optional module.

    Args:
        module: dotted name, e.g. "h5py" or "matplotlib.pyplot".
        extra: the extra of this package that installs it, e.g. "data".
        needed_by: what needs it, for the message; default: this package.

    Raises:
        ImportError: the module (or something it imports) is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{needed_by or 'diffpolicy_spec'} needs {package}, which cannot be imported ({error}): "
            f"pip install 'diffpolicy-spec[{extra}]'"
        ) from error
