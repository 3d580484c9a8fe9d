"""Frames from offscreen OpenGL, opened at the first frame so that nothing else ever needs OpenGL."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.optional import require

__all__ = ["OffscreenRenderer", "RenderUnavailable"]


class RenderUnavailable(RuntimeError):
    """This machine cannot draw without a screen."""


class OffscreenRenderer:
    """A camera on a MuJoCo model. Reads the simulation and changes nothing in it.

    Args:
        camera: name of a camera of the model.
        height, width: of the frames, pixels.
    """

    def __init__(self, camera: str, height: int, width: int) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"frames need a size of at least 1 x 1 pixel, got {height} x {width}")
        self.camera, self.height, self.width = camera, height, width
        self._renderer: Any = None
        self._option: Any = None

    def frame(self, model: Any, data: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of an mjModel and its mjData.

        Raises:
            RenderUnavailable: no working offscreen OpenGL.
            ValueError: the model has no such camera.
        """
        if self._renderer is None:
            self._open(model)
        self._renderer.update_scene(data, camera=self.camera, scene_option=self._option)
        return np.array(self._renderer.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free the OpenGL context; a later frame opens a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self, model: Any) -> None:
        mujoco = require("mujoco", extra="sim")
        names = [model.camera(i).name for i in range(model.ncam)]
        if self.camera not in names:
            raise ValueError(f"the model has no camera {self.camera!r}; it has {', '.join(names)}")
        # The model's own offscreen buffer limits the frame size.
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        backend = os.environ.get("MUJOCO_GL") or "glfw"
        try:
            self._renderer = mujoco.Renderer(model, self.height, self.width)
        except Exception as error:  # PyOpenGL and MuJoCo fail with whatever the missing library made of it
            raise RenderUnavailable(
                f"no offscreen OpenGL with MUJOCO_GL={backend} ({type(error).__name__}: {error}). "
                "Set MUJOCO_GL=egl (library libEGL; Debian: libegl1 libgl1-mesa-dri) or MUJOCO_GL=osmesa "
                "(libosmesa6) before python starts, or evaluate without video"
            ) from error
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # robosuite's collision shapes
        self._option.geomgroup[1] = 1  # and its visual ones
        self._option.sitegroup[:] = 0
