"""Rotations between axis-angle, matrix, quaternion (xyzw) and the 6-D form policies predict: numpy, any leading axes.

Matrices act on column vectors. The 6-D form is the first two *rows* of the matrix, row-major, as in diffusion_policy's
checkpoints (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks", use columns).
Floating dtypes are kept; integers become float64. A last axis of the wrong length is a ValueError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ACTION_REPRS",
    "actions_from_rot6d",
    "actions_to_rot6d",
    "axis_angle_to_matrix",
    "axis_angle_to_rot6d",
    "matrix_to_axis_angle",
    "matrix_to_quat_xyzw",
    "matrix_to_rot6d",
    "quat_xyzw_to_matrix",
    "rot6d_to_axis_angle",
    "rot6d_to_matrix",
]

ACTION_REPRS = ("absolute_rot6d", "absolute", "delta", "raw")
"""What an action may be: for each arm pos + rot6d + gripper (10-D), pos + axis-angle + gripper (7-D), or a 7-D
difference; or whatever the environment takes."""

Array = NDArray[Any]


def _floating(x: ArrayLike, tail: tuple[int, ...], name: str) -> Array:
    array = np.asarray(x)
    if array.shape[max(array.ndim - len(tail), 0) :] != tail:
        raise ValueError(f"{name} must have shape (..., {', '.join(map(str, tail))}), got {array.shape}")
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def axis_angle_to_matrix(axis_angle: ArrayLike) -> Array:
    """Rodrigues: R = I + a K + b K^2, K = [v]_x, a = sin(|v|)/|v|, b = (1 - cos(|v|))/|v|^2.

    Args:
        axis_angle: (..., 3), rotation axis times angle, rad.

    Returns:
        (..., 3, 3).
    """
    v = _floating(axis_angle, (3,), "axis_angle")
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    # np.sinc(t) = sin(pi t)/(pi t) is smooth at 0, and 1 - cos = 2 sin^2(./2) keeps small angles exact.
    a = np.sinc(angle / np.pi)
    b = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*v.shape[:-1], 3, 3)
    return (np.eye(3, dtype=v.dtype) + a * cross + b * (cross @ cross)).astype(v.dtype, copy=False)


def matrix_to_quat_xyzw(matrix: ArrayLike) -> Array:
    """Unit quaternion (x, y, z, w) with w >= 0; exact to rounding for every angle, pi included.

    4 q q^T is linear in the matrix: its row with the largest diagonal entry is taken, so nothing small is divided by.

    Args:
        matrix: (..., 3, 3), rotations.

    Returns:
        (..., 4). At an angle of exactly pi (w = 0) both signs are right; the largest component is then positive.
    """
    m = _floating(matrix, (3, 3), "matrix")
    m00, m01, m02 = m[..., 0, 0], m[..., 0, 1], m[..., 0, 2]
    m10, m11, m12 = m[..., 1, 0], m[..., 1, 1], m[..., 1, 2]
    m20, m21, m22 = m[..., 2, 0], m[..., 2, 1], m[..., 2, 2]
    rows = np.stack(
        [
            np.stack([1 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12], axis=-1),
            np.stack([m01 + m10, 1 - m00 + m11 - m22, m12 + m21, m02 - m20], axis=-1),
            np.stack([m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01], axis=-1),
            np.stack([m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., 3:] < 0, -q, q)


def quat_xyzw_to_matrix(quat: ArrayLike) -> Array:
    """Rotation matrices of quaternions.

    Args:
        quat: (..., 4), (x, y, z, w), any non-zero length.

    Returns:
        (..., 3, 3).

    Raises:
        ValueError: a quaternion of length zero or with NaN.
    """
    q = _floating(quat, (4,), "quat")
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not np.all(norm > 0):
        raise ValueError("a quaternion has length zero or holds NaN")
    x, y, z, w = np.moveaxis(q / norm, -1, 0)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(entries, axis=-1).reshape(*q.shape[:-1], 3, 3)


def matrix_to_axis_angle(matrix: ArrayLike) -> Array:
    """Axis times angle, the angle in [0, pi].

    Args:
        matrix: (..., 3, 3), rotations.

    Returns:
        (..., 3), rad. Around pi the axis may flip between neighbouring rotations (v and v - 2 pi v/|v| are the same
        rotation): compare rotations as matrices, never as axis-angle.
    """
    q = matrix_to_quat_xyzw(matrix)
    vector, w = q[..., :3], q[..., 3:]
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    half = np.arctan2(sine, w)
    # half / sin(half) -> 1 as the angle goes to 0; sinc has no 0/0 there.
    return (2 * vector / np.sinc(half / np.pi)).astype(q.dtype, copy=False)


def matrix_to_rot6d(matrix: ArrayLike) -> Array:
    """First two rows, row-major. Args: matrix (..., 3, 3). Returns: (..., 6)."""
    m = _floating(matrix, (3, 3), "matrix")
    return m[..., :2, :].reshape(*m.shape[:-2], 6)


def rot6d_to_matrix(rot6d: ArrayLike) -> Array:
    """Gram-Schmidt: b1 = a1/|a1|, b2 = (a2 - <b1, a2> b1)/|.|, b3 = b1 x b2; the rows of the matrix are b1, b2, b3.

    Args:
        rot6d: (..., 6), need not be orthonormal.

    Returns:
        (..., 3, 3), rotations.

    Raises:
        ValueError: two rows that are parallel, zero or hold NaN, which name no rotation.
    """
    d = _floating(rot6d, (6,), "rot6d")
    a1, a2 = d[..., :3], d[..., 3:]
    tiny = 100 * np.finfo(d.dtype).eps
    length1 = np.linalg.norm(a1, axis=-1, keepdims=True)
    length2 = np.linalg.norm(a2, axis=-1, keepdims=True)
    if not (np.all(length1 > 0) and np.all(length2 > 0)):
        raise ValueError("rot6d names no rotation: a row is zero or holds NaN")
    b1 = a1 / length1
    rest = a2 / length2
    rest = rest - np.sum(b1 * rest, axis=-1, keepdims=True) * b1
    length = np.linalg.norm(rest, axis=-1, keepdims=True)
    if not np.all(length > tiny):
        raise ValueError("rot6d names no rotation: its two rows are parallel")
    b2 = rest / length
    return np.stack([b1, b2, np.cross(b1, b2)], axis=-2)


def axis_angle_to_rot6d(axis_angle: ArrayLike) -> Array:
    """(..., 3) rad -> (..., 6)."""
    return matrix_to_rot6d(axis_angle_to_matrix(axis_angle))


def rot6d_to_axis_angle(rot6d: ArrayLike) -> Array:
    """(..., 6) -> (..., 3) rad, angle in [0, pi]; see `rot6d_to_matrix` for what is raised."""
    return matrix_to_axis_angle(rot6d_to_matrix(rot6d))


def actions_to_rot6d(actions: ArrayLike) -> Array:
    """Absolute arm actions as policies predict them.

    Args:
        actions: (..., 7 n) for n arms, each [position (3, m), axis-angle (3, rad), gripper (1)].

    Returns:
        (..., 10 n), each [position (3), rot6d (6), gripper (1)].
    """
    a = _per_arm(actions, 7)
    out = np.concatenate([a[..., :3], axis_angle_to_rot6d(a[..., 3:6]), a[..., 6:]], axis=-1)
    return out.reshape(*out.shape[:-2], out.shape[-2] * out.shape[-1])


def actions_from_rot6d(actions: ArrayLike) -> Array:
    """Inverse of `actions_to_rot6d`: (..., 10 n) -> (..., 7 n); see `rot6d_to_matrix` for what is raised."""
    a = _per_arm(actions, 10)
    out = np.concatenate([a[..., :3], rot6d_to_axis_angle(a[..., 3:9]), a[..., 9:]], axis=-1)
    return out.reshape(*out.shape[:-2], out.shape[-2] * out.shape[-1])


def _per_arm(actions: ArrayLike, width: int) -> Array:
    a = np.asarray(actions)
    if a.ndim == 0 or a.shape[-1] == 0 or a.shape[-1] % width:
        raise ValueError(f"actions must have shape (..., {width}) for each arm, got {a.shape}")
    return _floating(a.reshape(*a.shape[:-1], a.shape[-1] // width, width), (width,), "actions")
