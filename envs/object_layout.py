"""The observation "object" in the layout of robosuite up to 1.4, for datasets and checkpoints of that age."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.rotations import matrix_to_quat_xyzw, quat_xyzw_to_matrix

__all__ = ["OBJECT_LAYOUTS", "old_object_layout"]

Array = NDArray[np.float64]

OBJECT_LAYOUTS = ("1.5", "1.4")
"""The robosuite version whose layout "object" has; "1.4" stands for all before it."""


def old_object_layout(task: str, obs: Mapping[str, Array]) -> Array:
    """The "object" of robosuite 1.4, from an observation of robosuite 1.5.

    Lift: the last three entries are eef_pos - cube_pos (1.5: cube_pos - eef_pos).
    Can, Square, Tool Hang: each object is its position, quaternion (xyzw), then both seen from the gripper (1.5: these
    first, from the object's pose one step ago, and zero at reset).
    Transport: the two flags stand last (1.5: before the four vectors from grippers to objects).

    Raises:
        KeyError: there is no such task.
    """
    return _LAYOUTS[task](obs["object"], obs)


def _lift(now: Array, obs: Mapping[str, Array]) -> Array:
    return np.concatenate([now[:7], -now[7:]])


def _seen_from_gripper(now: Array, obs: Mapping[str, Array]) -> Array:
    """Objects of 14 entries, then flags."""
    objects, flags = now[: len(now) // 14 * 14].reshape(-1, 14), now[len(now) // 14 * 14 :]
    position, quat = objects[:, 7:10], objects[:, 10:]
    hand = quat_xyzw_to_matrix(obs["robot0_eef_quat"])
    seen_position = (position - obs["robot0_eef_pos"]) @ hand  # rows: R^T (p - p_eef)
    seen_quat = matrix_to_quat_xyzw(hand.T @ quat_xyzw_to_matrix(quat))
    return np.concatenate([np.concatenate([position, quat, seen_position, seen_quat], axis=1).ravel(), flags])


def _transport(now: Array, obs: Mapping[str, Array]) -> Array:
    return np.concatenate([now[:27], now[29:], now[27:29]])


_LAYOUTS: dict[str, Callable[[Array, Mapping[str, Array]], Array]] = {
    "lift": _lift,
    "can": _seen_from_gripper,
    "square": _seen_from_gripper,
    "transport": _transport,
    "tool_hang": _seen_from_gripper,
}
