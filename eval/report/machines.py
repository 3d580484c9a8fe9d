"""What the episodes ran on, in a few lines; every written file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffpolicy_spec.eval.report.data import Machine

__all__ = ["facts"]


def facts(machine: Machine) -> dict[str, str]:
    """device, processor, threads, versions, git commit and configuration; and "summary", most of it in one line."""
    e = machine.environment
    versions: Mapping[str, Any] = e.get("versions") or {}
    known = {
        "episodes": f"{machine.episodes:,}",
        "device": _text(e.get("device")),
        "processor": f"{_text(e.get('processor'))}, {_text(e.get('cores'))} cores",
        "threads": _text(e.get("num_threads")),
        "git commit": _text(e.get("commit")),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
    }
    many = len(machine.configurations) > 1
    for i, config in enumerate(machine.configurations):
        known[f"configuration {i + 1}" if many else "configuration"] = _flat(config)
    short = ("device", "processor", "threads", "git commit", "versions")
    return {**known, "summary": "; ".join(f"{name}: {known[name]}" for name in short)}


def _text(value: Any) -> str:
    return "not known" if value is None else str(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> str:
    """key=value, as a command takes it."""
    parts = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            parts.append(_flat(value, f"{prefix}{key}."))
        else:
            parts.append(f"{prefix}{key}={value}")
    return " ".join(parts)
