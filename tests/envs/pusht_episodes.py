"""An episode of random pushes, as bytes, run here or in a process of its own: the arguments are task, seed."""

import sys

import numpy as np

from diffpolicy_spec.envs import make_env

TASKS = ("pusht", "pusht_keypoints", "pusht_mujoco", "pusht_mujoco_keypoints")


def pushes(env, seed, steps=60):
    """(steps + 1, D): what is seen when the agent goes to and fro over the block."""
    obs, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    rows = [np.concatenate([*obs.values()])]
    for _ in range(steps):
        target = env.unwrapped.state()[2:4] + rng.uniform(-100, 100, 2)
        obs, reward, terminated, truncated, _ = env.step(target)
        rows.append(np.concatenate([*obs.values()]))
        assert 0 <= reward <= 1
        if terminated or truncated:
            break
    return np.array(rows)


if __name__ == "__main__":
    with make_env(sys.argv[1]) as env:
        sys.stdout.write(pushes(env, int(sys.argv[2])).tobytes().hex())
