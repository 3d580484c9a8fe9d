"""What a node says about itself: a diagnostic_msgs/DiagnosticArray, as a dict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffpolicy_spec.ros.messages import header

__all__ = ["DIAGNOSTICS_TYPE", "ERROR", "OK", "WARN", "Status", "diagnostic_array", "flat"]

DIAGNOSTICS_TYPE = "diagnostic_msgs/DiagnosticArray"
OK, WARN, ERROR = 0, 1, 2
MOST_VALUES = 200


@dataclass(frozen=True)
class Status:
    """One line of it: level OK, WARN or ERROR; values: anything, nested or not."""

    name: str
    level: int
    message: str
    values: Mapping[str, Any] = field(default_factory=dict)


def diagnostic_array(statuses: Sequence[Status], time: float, ros: int, hardware_id: str) -> dict[str, Any]:
    """The message; time: s, ROS time."""
    return {
        "header": header(time, ros),
        "status": [
            {
                "level": status.level,
                "name": status.name,
                "message": status.message[:1000],
                "hardware_id": hardware_id,
                "values": [{"key": key, "value": value} for key, value in flat(status.values)[:MOST_VALUES]],
            }
            for status in statuses
        ],
    }


def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested values as ("latency_ms.p99", "83.2"), all that ROS's diagnostics take; empty ones are left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name}.")
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        elif isinstance(value, float):
            pairs.append((name, f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"))
        else:
            pairs.append((name, str(value)[:500]))
    return pairs
