"""Push-T's plane: the block, its keypoints, the goal, and how much of it is covered.

Units are pixels of diffusion_policy's 512 x 512 window, x to the right and y down, and rad, clockwise as seen. A pose
(3,) is the position of the block's own origin, the middle of the T's top edge, and its angle; a state (5,) is the
agent's position (2,) and the block's pose (3,), as diffusion_policy's zarr stores hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpolicy_spec.optional import require

__all__ = [
    "AGENT_RADIUS",
    "CENTER_OF_MASS",
    "GOAL_POSE",
    "KEYPOINTS",
    "RECTANGLES",
    "corners",
    "coverage",
    "draws",
    "keypoints",
    "place",
    "polygon",
    "rotation",
    "unplace",
]

Array = NDArray[np.float64]

# (left, top, right, bottom) of the T's bar and stem in its own frame.
RECTANGLES = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))
CENTER_OF_MASS = np.array([0.0, 45.0])  # the mean of the rectangles' centres: both weigh the same
GOAL_POSE = np.array([256.0, 256.0, np.pi / 4])
AGENT_RADIUS = 15.0

# The nine points that diffusion_policy's low-dimensional Push-T observes, in the block's own frame. It samples them
# from the rendered T; these are recovered from the data set pusht_cchi_v7_replay (C. Chi et al., MIT License), whose
# `keypoint` is rotation(angle) @ point + position: the mean over the 19,664 of 25,650 frames that agree to 1e-3 pixels.
# (The others are up to 2 pixels off: the agent touches the block, and the stored keypoints are one physics step later.)
KEYPOINTS = np.array(
    [
        [9.269787, 90.040974],
        [-60.983472, -1.186730],
        [60.912756, -1.393364],
        [-0.270503, 25.543625],
        [-14.064927, 122.815854],
        [39.002738, 32.857404],
        [-39.966414, 32.729656],
        [-16.824344, 62.863179],
        [23.541461, -1.700288],
    ]
)


def rotation(angle: float) -> Array:
    """(2, 2): turns by `angle`."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def keypoints(pose: ArrayLike) -> Array:
    """(9, 2): where the nine points of a block at `pose` are."""
    x, y, angle = np.asarray(pose, dtype=np.float64)
    return KEYPOINTS @ rotation(angle).T + [x, y]


def corners(pose: ArrayLike) -> Array:
    """(8, 2): corners of the bar and then of the stem of a block at `pose`, gym-pusht's environment_state."""
    x, y, angle = np.asarray(pose, dtype=np.float64)
    own = np.array([[[a, b], [c, b], [c, d], [a, d]] for a, b, c, d in RECTANGLES]).reshape(8, 2)
    return own @ rotation(angle).T + [x, y]


def polygon(pose: ArrayLike) -> Any:
    """The T at `pose` as a shapely MultiPolygon of its two rectangles."""
    geometry = require("shapely.geometry", extra="pusht")
    return geometry.MultiPolygon([geometry.Polygon(points) for points in corners(pose).reshape(2, 4, 2)])


def coverage(pose: ArrayLike) -> float:
    """The part of the goal that a block at `pose` covers, 0 to 1."""
    goal = polygon(GOAL_POSE)
    return float(goal.intersection(polygon(pose)).area / goal.area)


def draws(seed: int) -> Iterator[Array]:
    """Starts (5,) of a seed, without end; the first is diffusion_policy's own start for that seed.

    They are not states yet, see `place`. Seeds count modulo 2**32.
    """
    generator = np.random.RandomState(seed % 2**32)  # the generator that diffusion_policy's environment draws with
    while True:
        agent = [generator.randint(50, 450), generator.randint(50, 450)]
        block = [generator.randint(100, 400), generator.randint(100, 400)]
        yield np.array([*agent, *block, generator.randn() * 2 * np.pi - np.pi])


def place(draw: ArrayLike) -> Array:
    """The state (5,) that a draw stands for.

    diffusion_policy sets the block's position and then its angle, which turns it about its centre of mass.
    """
    draw = np.asarray(draw, dtype=np.float64)
    return np.concatenate([draw[:2], draw[2:4] + CENTER_OF_MASS - rotation(draw[4]) @ CENTER_OF_MASS, draw[4:]])


def unplace(state: ArrayLike) -> Array:
    """The draw (5,) that stands for a state: the inverse of `place`."""
    state = np.asarray(state, dtype=np.float64)
    return np.concatenate([state[:2], state[2:4] - CENTER_OF_MASS + rotation(state[4]) @ CENTER_OF_MASS, state[4:]])
