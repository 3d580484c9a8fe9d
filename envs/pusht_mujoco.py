"""Push-T in MuJoCo: a real block that slides with friction on a table, with gym-pusht's observations and reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import Array
from diffpolicy_spec.envs.pusht_geometry import AGENT_RADIUS, place, polygon
from diffpolicy_spec.envs.pusht_rules import PushTBase
from diffpolicy_spec.envs.rendering import OffscreenRenderer
from diffpolicy_spec.envs.tasks import Task
from diffpolicy_spec.optional import require

__all__ = ["PushTMujocoEnv", "build_pusht_mujoco"]

_MODEL = Path(__file__).parent / "assets" / "pusht.xml"
_METERS = 0.001  # a pixel
_MIDDLE = 256.0  # pixels: the world's origin
_HEIGHT = 0.015  # of the block's frame when it lies on the table, m
_GAP = 1.0  # pixels between the bodies of a start
_INNER = (7.0, 504.0)  # faces of the walls, pixels


class PushTMujocoEnv(PushTBase):
    """Push-T with contacts in three dimensions; see `PushTBase` for observations, actions and rules.

    One pixel is one millimetre. Block (200 g, two boxes) and table rub at a coefficient of 0.4; the agent is a cylinder
    on two slides, driven as gym-pusht's: acceleration = 100 (target - position) - 20 velocity, per s2 and s.

    A seed starts where gym-pusht starts, unless bodies overlap there: then at that seed's next draw.

    Raises:
        ImportError: MuJoCo or shapely is not installed.
    """

    def __init__(self, task: str = "pusht_mujoco", **kwargs: Any) -> None:
        super().__init__(task, **kwargs)
        require("shapely", extra="pusht", needed_by="the task pusht_mujoco")
        self._mujoco = require("mujoco", extra="pusht", needed_by="the task pusht_mujoco")
        self._model = self._mujoco.MjModel.from_xml_path(str(_MODEL))
        self._data = self._mujoco.MjData(self._model)
        self._substeps = round(1 / (self.task.control_freq * self._model.opt.timestep))
        draws = self.render_mode is not None or self.images
        self._renderer = OffscreenRenderer("top", *self.render_size) if draws else None

    def state(self) -> Array:
        """(5,): agent x, y, block x, y, angle in (-pi, pi], now."""
        x, y, _, w, i, j, k = self._data.joint("block").qpos
        yaw = np.arctan2(2 * (w * k + i * j), 1 - 2 * (j * j + k * k))
        pusher = [self._data.joint(f"pusher_{axis}").qpos[0] for axis in "xy"]
        return np.array([*_to_pixels(pusher), *_to_pixels([x, y]), -yaw])

    def render(self) -> NDArray[np.uint8] | None:
        """The table from above, (H, W, 3) uint8; None without a render_mode. Has no influence on the simulation.

        Raises:
            RenderUnavailable: no offscreen OpenGL on this machine.
        """
        if self._renderer is None or self.render_mode is None:
            return None
        return self._renderer.frame(self._model, self._data)

    def close(self) -> None:
        """Free the renderer; a second call does nothing."""
        super().close()
        if self._renderer is not None:
            self._renderer.close()

    def _image(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        assert self._renderer is not None  # made for images
        return self._renderer.frame(self._model, self._data, size=size)

    def _allows(self, draw: Array) -> bool:
        geometry = require("shapely.geometry", extra="pusht")
        state = place(draw)
        block = polygon(state[2:])
        left, top, right, bottom = block.bounds
        inside = min(left, top) >= _INNER[0] + _GAP and max(right, bottom) <= _INNER[1] - _GAP
        return inside and block.distance(geometry.Point(state[:2])) >= AGENT_RADIUS + _GAP

    def _begin(self, draw: Array) -> None:
        state = place(draw)
        self._mujoco.mj_resetData(self._model, self._data)  # velocities, contacts and the solver's warm start
        yaw = -state[4]
        x, y = _to_meters(state[2:4])
        self._data.joint("block").qpos[:] = [x, y, _HEIGHT, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        for axis, value in zip("xy", _to_meters(state[:2]), strict=True):
            self._data.joint(f"pusher_{axis}").qpos[0] = value
        self._mujoco.mj_forward(self._model, self._data)

    def _advance(self, action: Array) -> None:
        self._data.ctrl[:] = _to_meters(action)
        self._mujoco.mj_step(self._model, self._data, self._substeps)
        self._mujoco.mj_forward(self._model, self._data)  # frames show where bodies are after the step


def build_pusht_mujoco(task: Task, *, action_repr: str, **kwargs: Any) -> PushTMujocoEnv:
    """What the task table names for Push-T in MuJoCo; `action_repr` is always "raw"."""
    return PushTMujocoEnv(task.name, **kwargs)


def _to_pixels(meters: Any) -> Array:
    """(2,) m, y up -> (2,) pixels, y down."""
    return np.asarray(meters) * [1 / _METERS, -1 / _METERS] + _MIDDLE


def _to_meters(pixels: Any) -> Array:
    return (np.asarray(pixels) - _MIDDLE) * [_METERS, -_METERS]
