"""Whether a stream of commands has stayed within limits: by differences of the numbers, nothing else."""

import numpy as np

EPS = np.finfo(np.float64).eps


def rates_of(positions: np.ndarray, h: float) -> dict[str, np.ndarray]:
    """Velocity, acceleration and jerk of positions (n, Da) that begin at rest at row 0."""
    before = np.concatenate([positions[:1]] * 3 + [positions])
    v = np.diff(before, axis=0) / h
    a = np.diff(v, axis=0) / h
    return {"velocity": v[2:], "acceleration": a[1:], "jerk": np.diff(a, axis=0) / h}


def outside(positions: np.ndarray, h: float, limits: dict[str, np.ndarray]) -> list[str]:
    """What a stream of positions (n, Da), beginning at rest at its first row, breaks.

    Limits hold to 1e-9 of themselves, and to what a difference of doubles can tell.
    """
    broken = []
    largest = np.abs(positions).max(axis=0)
    inside = slice(1, None)
    if (positions[inside] < limits["low"]).any() or (positions[inside] > limits["high"]).any():
        broken.append("position")
    for order, (name, values) in enumerate(rates_of(positions, h).items(), start=1):
        slack = 1e-9 * limits[name] + 2**order * 4 * EPS * (1 + largest) / h**order
        # A limit that is not given is infinite, and so is its slack.
        if (np.abs(values) > limits[name] + slack).any():
            broken.append(name)
    return broken
