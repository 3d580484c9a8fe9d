"""Contracts to start from: a Panda-like arm, a UR-like arm, the simulated Lift. Copy one and make it your robot's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["example", "examples"]


def examples() -> tuple[str, ...]:
    """The names there are, for `example`."""
    files = (Path(str(item)) for item in resources.files(__name__).iterdir())
    return tuple(sorted(path.stem for path in files if path.suffix == ".yaml"))


def example(name: str) -> Path:
    """The file of a contract that comes with the package, as "panda".

    Raises:
        ValueError: there is none of that name.
    """
    if name not in examples():
        raise ValueError(f"there is no contract {name!r} in the package; there are {', '.join(examples())}")
    return Path(str(resources.files(__name__))) / f"{name}.yaml"
