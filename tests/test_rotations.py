"""Rotations against scipy, with the angles near 0 and pi where conversions usually break."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffpolicy_spec import rotations as R

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-6}


def axis_angles(dtype=np.float64):
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(400, 3))
    axes[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    angles = np.array([0.0, 1e-12, 1e-7, 1e-3, 0.5, 2.0, 3.0, np.pi - 1e-3, np.pi - 1e-7, np.pi - 1e-12, np.pi])
    return (axes[:, None, :] * angles[None, :, None]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_axis_angle_matrix_quaternion_agree_with_scipy(dtype):
    v = axis_angles(dtype)
    truth = Rotation.from_rotvec(v.reshape(-1, 3).astype(np.float64))
    matrix = R.axis_angle_to_matrix(v)
    assert matrix.dtype == dtype
    tol = TOLERANCE[dtype]
    np.testing.assert_allclose(matrix.reshape(-1, 3, 3), truth.as_matrix(), atol=tol)
    quat = R.matrix_to_quat_xyzw(matrix)
    assert np.all(quat[..., 3] >= 0)
    np.testing.assert_allclose(np.abs(np.sum(quat.reshape(-1, 4) * truth.as_quat(), axis=-1)), 1, atol=tol)
    np.testing.assert_allclose(R.quat_xyzw_to_matrix(-3 * quat), matrix, atol=tol)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_round_trips_are_exact_near_zero_and_near_pi(dtype):
    matrix = R.axis_angle_to_matrix(axis_angles(dtype))
    back = R.matrix_to_axis_angle(matrix)
    assert back.dtype == dtype
    assert np.all(np.linalg.norm(back, axis=-1) <= np.pi * (1 + 1e-6))
    np.testing.assert_allclose(R.axis_angle_to_matrix(back), matrix, atol=TOLERANCE[dtype])
    again = R.rot6d_to_matrix(R.matrix_to_rot6d(matrix))
    np.testing.assert_allclose(again, matrix, atol=TOLERANCE[dtype])


def test_small_axis_angles_keep_their_digits():
    v = np.array([1e-9, -2e-9, 3e-9])
    np.testing.assert_allclose(R.matrix_to_axis_angle(R.axis_angle_to_matrix(v)), v, rtol=1e-6)


def test_rot6d_is_the_first_two_rows():
    matrix = Rotation.from_rotvec([0.3, -2.0, 1.0]).as_matrix()
    np.testing.assert_array_equal(R.matrix_to_rot6d(matrix), matrix[:2].ravel())


def test_rot6d_is_orthonormalised():
    rng = np.random.default_rng(1)
    matrix = R.rot6d_to_matrix(rng.normal(size=(50, 4, 6)))
    product = matrix @ np.swapaxes(matrix, -1, -2)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-9)
    scaled = R.rot6d_to_matrix([2, 0, 0, 5, 3, 0])
    np.testing.assert_allclose(scaled, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("arms", [1, 2])
def test_actions_round_trip(arms):
    rng = np.random.default_rng(2)
    actions = rng.normal(size=(5, 16, 7 * arms))
    wide = R.actions_to_rot6d(actions)
    assert wide.shape == (5, 16, 10 * arms)
    back = R.actions_from_rot6d(wide)
    a, b = actions.reshape(5, 16, arms, 7), back.reshape(5, 16, arms, 7)
    np.testing.assert_array_equal(a[..., [0, 1, 2, 6]], b[..., [0, 1, 2, 6]])
    np.testing.assert_allclose(R.axis_angle_to_matrix(a[..., 3:6]), R.axis_angle_to_matrix(b[..., 3:6]), atol=1e-12)


def test_empty_batches_pass_through():
    assert R.actions_to_rot6d(np.zeros((0, 7))).shape == (0, 10)
    assert R.actions_from_rot6d(np.zeros((0, 10))).shape == (0, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: R.rot6d_to_matrix(np.zeros(6)), "zero"),
        (lambda: R.rot6d_to_matrix([1.0, 0, 0, np.nan, 0, 0]), "NaN"),
        (lambda: R.rot6d_to_matrix([1.0, 2, 3, -2, -4, -6]), "parallel"),
        (lambda: R.quat_xyzw_to_matrix(np.zeros(4)), "length zero"),
        (lambda: R.axis_angle_to_matrix(np.zeros(4)), r"\(\.\.\., 3\).*\(4,\)"),
        (lambda: R.actions_to_rot6d(np.zeros((2, 6))), r"\(2, 6\)"),
        (lambda: R.actions_from_rot6d(0.0), r"\(\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
