"""One demonstration: a scripted expert through one episode, a function of the task and the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from diffpolicy_spec.envs.experts import make_expert
from diffpolicy_spec.envs.factory import make_env
from diffpolicy_spec.envs.recording import Episode
from diffpolicy_spec.envs.robosuite_env import RobosuiteEnv

__all__ = ["HOLD_STEPS", "demonstrate", "demonstration_env"]

HOLD_STEPS = 10  # solved states in a row before recording stops, as robosuite's own recorder does


def demonstration_env(
    task: str, max_steps: int, images: Mapping[str, tuple[int, int]] | None = None
) -> gym.Env[Any, Any]:
    """The environment that demonstrations are recorded in: absolute actions, and it runs on after success.

    Args:
        images: "<camera>_image" -> (height, width) of what is recorded besides the task's observation.
    """
    options = {"images": dict(images)} if images else {}
    return make_env(task, action_repr="absolute", terminate_on_success=False, horizon=max_steps, **options)


def demonstrate(env: gym.Env[Any, Any], seed: int) -> Episode:
    """Record the expert in an environment from `demonstration_env`.

    It ends when the task has been solved for HOLD_STEPS steps in a row (a success) or at the environment's horizon.
    """
    base = env.unwrapped
    assert isinstance(base, RobosuiteEnv)
    obs, _ = env.reset(seed=seed)
    # 1: the environment has its own stream from the same seed.
    expert = make_expert(base.task.name, np.random.default_rng([seed, 1]))
    rows: dict[str, list[Any]] = {"actions": [], "states": [], "rewards": []}
    seen: dict[str, list[Any]] = {key: [] for key in obs}
    held, truncated = 0, False
    while held < HOLD_STEPS and not truncated:
        action = expert.act(obs, base.eef_pose()[1])
        rows["actions"].append(action)
        rows["states"].append(base.sim_state())
        for key, value in obs.items():
            seen[key].append(value)
        obs, reward, _, truncated, info = env.step(action)
        rows["rewards"].append(reward)
        held = held + 1 if info["success"] else 0
    rewards = np.array(rows["rewards"])
    dones = (rewards > 0).astype(np.int64)
    dones[-1] = 1
    return Episode(
        seed=seed,
        success=held >= HOLD_STEPS,
        actions=np.array(rows["actions"]),
        states=np.array(rows["states"]),
        obs={key: np.array(values) for key, values in seen.items()},
        rewards=rewards,
        dones=dones,
    )
