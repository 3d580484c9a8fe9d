"""What every Push-T environment shares: observations, reward, success, starts and the end of an episode."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import Array, Observation, TaskEnv, checked_action
from diffpolicy_spec.envs.pusht_geometry import corners, coverage, draws, keypoints, unplace
from diffpolicy_spec.envs.tasks import get_task

__all__ = ["SUCCESS_COVERAGE", "PushTBase"]

SUCCESS_COVERAGE = 0.95


class PushTBase(TaskEnv):
    """A disc pushes a T-shaped block onto its outline; by diffusion_policy's rules, whatever simulates it.

    Observation: dict of float64 arrays, the task's keys in the task's order; pixels and rad, see `pusht_geometry`.
    "state" (5,): agent x, y, block x, y, angle in [0, 2 pi). "keypoint" (18,): x, y of the block's nine points;
    "agent_pos" (2,). "corners" (16,): x, y of the corners of the block's bar and stem. With `images`, "image" follows:
    (H, W, 3) uint8, the window without a mark of the action, as diffusion_policy's image policies see it.

    Action (2,): target position of the agent, pixels; 0 to 512 is the window, and nothing is clipped to it.

    Reward is coverage / 0.95, at most 1, with coverage the part of the goal that the block covers; an episode's score
    is its largest reward. It is solved above a coverage of 0.95, and terminates there, or is truncated at the horizon.
    info has "success" (bool, now) and "coverage".

    The episode is a function of the seed given to reset.

    Args:
        task: name in the task table.
        render_mode: None or "rgb_array".
        terminate_on_success: False lets the episode run on to the horizon.
        horizon: steps until truncation; default: the task's.
        render_size: (height, width) of frames, pixels.
        obs: low-dimensional observations that are given, in this order; None: the task's `obs`.
        images: {"image": (height, width)}; diffusion_policy's have 96 x 96 pixels.

    Raises:
        UnknownTaskError: no such task.
        ValueError: another render_mode, a horizon below 1, or observations that there are not.
    """

    def __init__(
        self,
        task: str,
        *,
        render_mode: str | None = None,
        terminate_on_success: bool = True,
        horizon: int | None = None,
        render_size: tuple[int, int] = (256, 256),
        obs: Sequence[str] | None = None,
        images: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        if set(images or ()) - {"image"}:
            raise ValueError(f"Push-T has one image observation, 'image', not {', '.join(images or ())}")
        super().__init__(
            get_task(task), render_mode=render_mode, terminate_on_success=terminate_on_success, horizon=horizon,
            obs=obs, images=images,
        )  # fmt: skip
        self.render_size = render_size
        self.action_space = gym.spaces.Box(0.0, 512.0, (2,), np.float64)
        self.observation_space = gym.spaces.Dict(self._boxes())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see gymnasium.

        Args:
            seed: the first start that `pusht_geometry.draws` gives for it (in MuJoCo: the first without overlaps).
            options: {"state": (5,)} starts from that state instead; otherwise not used.

        Returns:
            (observation, info) with info = {"success": bool, "coverage": float}.
        """
        self._check_open()
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**32)) if seed is None else seed
        state = (options or {}).get("state")
        if state is None:
            self._begin(next(draw for draw in draws(drawn) if self._allows(draw)))
        else:
            self._begin(unplace(checked_action(state, 5, "agent x, y, block x, y, angle")))
        self._elapsed = 0
        state = self.state()
        _, info = self._judge(state)
        return self._observe(state), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 0.1 s.

        Args:
            action: (2,).

        Raises:
            ActionError: before anything moves.
            ResetNeeded: before the first reset or after the end of the episode.
        """
        self._check_under_way()
        self._advance(checked_action(action, 2, "target x, y of the agent, pixels"))
        state = self.state()
        reward, info = self._judge(state)
        terminated, truncated = self._stepped(info["success"])
        return self._observe(state), reward, terminated, truncated, info

    @abstractmethod
    def state(self) -> Array:
        """(5,): agent x, y, block x, y, angle, now; the angle is not wrapped."""

    @abstractmethod
    def _begin(self, draw: Array) -> None:
        """Put agent and block where a draw (5,) says, at rest."""

    @abstractmethod
    def _advance(self, action: Array) -> None:
        """Simulate one control step."""

    def _allows(self, draw: Array) -> bool:
        """Whether an episode may start there."""
        return True

    def _judge(self, state: Array) -> tuple[float, dict[str, Any]]:
        """(reward, info)."""
        covered = coverage(state[2:])
        return min(covered / SUCCESS_COVERAGE, 1.0), {"success": covered > SUCCESS_COVERAGE, "coverage": covered}

    def _observe(self, state: Array) -> Observation:
        values = {
            "state": np.concatenate([state[:4], state[4:] % (2 * np.pi)]),
            "keypoint": keypoints(state[2:]).ravel(),
            "agent_pos": state[:2].copy(),
        }
        if "corners" in self.obs:
            values["corners"] = corners(state[2:]).ravel()
        out: Observation = {key: values[key] for key in self.obs}
        if self.images and self.observe_images:
            out["image"] = self._image(self.images["image"])
        return out

    @abstractmethod
    def _image(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The window now, (*size, 3), without the action."""
