"""From actions to ROS messages, as dicts: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.ros.contract_outputs import Output
from diffpolicy_spec.ros.messages import duration, header, stamp
from diffpolicy_spec.rotations import axis_angle_to_matrix, matrix_to_quat_xyzw, rot6d_to_matrix

__all__ = ["command", "standstill", "trajectory", "values_of"]

Array = NDArray[np.float64]


def values_of(output: Output, actions: Array) -> Array:
    """The numbers of actions (..., Da) that a topic takes, as they are sent: (..., d).

    Raises:
        ValueError: numbers that are not finite: JSON has none, and no robot wants any.
    """
    values = actions[..., output.start : output.stop]
    if not np.isfinite(values).all():
        raise ValueError(f"{output.topic}: an action has numbers that are not finite; nothing is sent")
    values = np.asarray(output.scale) * values + np.asarray(output.offset)
    return values if output.clip is None else np.clip(values, *output.clip)


def command(output: Output, action: Array, time: float, period: float, ros: int) -> dict[str, Any]:
    """One action as a message.

    Args:
        output: where it goes. action: (Da,). time: s, on the robot's clock, when it is to be executed.
        period: s, of the commands: a JointTrajectory of one point reaches it so long after its beginning.
        ros: 1 or 2.

    Raises:
        ValueError: numbers that are not finite, or that name no rotation.
    """
    values = values_of(output, action)
    if output.type == "trajectory_msgs/JointTrajectory":
        return trajectory(output, values[None], time, period, ros)
    if output.type == "std_msgs/Float64MultiArray":
        return {"layout": {"dim": [], "data_offset": 0}, "data": values.tolist()}
    if output.type == "geometry_msgs/Twist":
        return _twist(dict(zip(output.fields, values.tolist(), strict=True)))
    pose = {"position": _xyz(values[:3]), "orientation": _xyzw(orientation(output, values[3:]))}
    return {"header": header(time, ros, output.frame_id), "pose": pose}


def standstill(output: Output) -> dict[str, Any] | None:
    """What stops a topic that is commanded in velocities; None: its last target does."""
    return _twist({}) if output.type == "geometry_msgs/Twist" else None


def trajectory(output: Output, points: Array, first: float, period: float, ros: int) -> dict[str, Any]:
    """A trajectory_msgs/JointTrajectory: point i belongs to the time first + i * period.

    Its header's time is a period before the first, so time_from_start is (i + 1) * period: a controller that takes it
    late drops the points that have passed, and goes on with the others in time. With `stamp: zero` it begins when it is
    taken, and so does a single point: that would have passed by then, and controllers refuse what is all past.

    Args:
        points: (n, d) positions, n >= 1, see `values_of`. first: s, on the robot's clock. period: s.
    """
    begin = {"sec": 0, "nanosec": 0} if ros == 2 else {"secs": 0, "nsecs": 0}
    if output.stamp == "time" and len(points) > 1:
        begin = stamp(first - period, ros)
    listed = [
        {"positions": row, "time_from_start": duration((i + 1) * period, ros)} for i, row in enumerate(points.tolist())
    ]
    if output.velocities:
        for point, row in zip(listed, _velocities(points, period).tolist(), strict=True):
            point["velocities"] = row
    return {
        "header": {"stamp": begin, "frame_id": output.frame_id},
        "joint_names": list(output.names),
        "points": listed,
    }


def orientation(output: Output, values: Array) -> Array:
    """(4,) unit quaternion (x, y, z, w) of what an action has for it.

    Raises:
        ValueError: numbers that name no rotation.
    """
    if output.rotation == "none":
        return np.asarray(output.orientation)
    if output.rotation == "quaternion":
        norm = float(np.linalg.norm(values))
        if not norm > 1e-6:
            raise ValueError(f"{output.topic}: the action's quaternion has length zero")
        return values / norm
    return matrix_to_quat_xyzw(rot6d_to_matrix(values) if output.rotation == "rot6d" else axis_angle_to_matrix(values))


def _velocities(points: Array, period: float) -> Array:
    """Central differences; at rest at the end, where nothing follows."""
    velocities = np.zeros_like(points)
    if len(points) > 1:
        velocities[0] = (points[1] - points[0]) / period
        velocities[1:-1] = (points[2:] - points[:-2]) / (2 * period)
    return velocities


def _twist(values: Mapping[str, float]) -> dict[str, Any]:
    return {
        part: {axis: values.get(f"{part}.{axis}", 0.0) for axis in ("x", "y", "z")} for part in ("linear", "angular")
    }


def _xyz(values: Array) -> dict[str, float]:
    return dict(zip("xyz", values.tolist(), strict=True))


def _xyzw(values: Array) -> dict[str, float]:
    return dict(zip("xyzw", values.tolist(), strict=True))
