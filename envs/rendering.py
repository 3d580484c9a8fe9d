"""Frames from offscreen OpenGL, opened at the first frame so that nothing else ever needs OpenGL."""

from __future__ import annotations

import atexit
import importlib
import os
import weakref
from ctypes.util import find_library
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.optional import require

__all__ = ["OffscreenRenderer", "RenderUnavailable", "checked_size", "gl_backend"]

_REMEDY = (
    "Install libEGL (Debian: libegl1 libgl1-mesa-dri) or OSMesa (libosmesa6; then set MUJOCO_GL=osmesa before python "
    "starts), or go without video: nothing else needs OpenGL"
)


class RenderUnavailable(RuntimeError):
    """This machine cannot draw without a screen."""


def gl_backend() -> str:
    """What draws: "egl", "osmesa" or "glfw" as MUJOCO_GL says; unset, egl where there is such a library, else osmesa.

    Raises:
        RenderUnavailable: MUJOCO_GL says something else, e.g. "disabled".
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if not wanted:
        return "egl" if find_library("EGL") or not find_library("OSMesa") else "osmesa"
    if wanted not in ("egl", "osmesa", "glfw"):
        raise RenderUnavailable(f"MUJOCO_GL={wanted}: set it to egl or osmesa to draw offscreen. {_REMEDY}")
    return wanted


class OffscreenRenderer:
    """Cameras on a MuJoCo model, through one OpenGL context. Reads the simulation and changes nothing in it.

    (robosuite's own offscreen context runs mj_forward when it opens, which changes the episode in its last digits.)

    Args:
        camera: name of a camera of the model, for frames that name none.
        height, width: of these frames, pixels.
        hidden: geom groups of 0 to 2 that are not drawn; the default hides robosuite's collision shapes.
    """

    def __init__(self, camera: str, height: int, width: int, *, hidden: tuple[int, ...] = (0,)) -> None:
        self.camera, (self.height, self.width) = camera, checked_size((height, width))
        self.hidden = hidden
        self._gl: Any = None

    def frame(
        self, model: Any, data: Any, camera: str | None = None, size: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """One frame, the right way up.

        Args:
            model, data: an mjModel, the same one each time, and its mjData.
            camera: name of a camera of the model.
            size: (height, width), pixels.

        Returns:
            (height, width, 3) uint8.

        Raises:
            RenderUnavailable: no working offscreen OpenGL.
            ValueError: the model has no such camera.
        """
        camera = self.camera if camera is None else camera
        height, width = (self.height, self.width) if size is None else checked_size(size)
        names = [model.camera(i).name for i in range(model.ncam)]
        if camera not in names:
            raise ValueError(f"the model has no camera {camera!r}; it has {', '.join(names)}")
        mujoco = require("mujoco", extra="sim")
        if self._gl is None:
            self._open(mujoco, model)
        self._gl.make_current()
        if height > self._context.offHeight or width > self._context.offWidth:
            buffer = max(width, self._context.offWidth), max(height, self._context.offHeight)
            mujoco.mjr_resizeOffscreen(*buffer, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._view.fixedcamid = names.index(camera)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, None, self._view, everything, self._scene)
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._context)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, area, self._context)
        return pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the OpenGL context; a later frame opens a new one."""
        if self._gl is not None:
            self._free()
            atexit.unregister(self._free)
            self._gl = None

    def _open(self, mujoco: Any, model: Any) -> None:
        backend = gl_backend()
        try:
            # MuJoCo's own choice is made from MUJOCO_GL when it is imported, and without it needs a screen.
            gl = importlib.import_module(f"mujoco.{backend}").GLContext(self.width, self.height)
            gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as error:  # PyOpenGL and MuJoCo fail with whatever the missing library made of it
            raise RenderUnavailable(
                f"no offscreen OpenGL through {backend} ({type(error).__name__}: {error}). {_REMEDY}"
            ) from error
        self._gl = gl
        # A renderer that nobody closes is freed with its last reference, or before MuJoCo's own exit function ends EGL.
        self._free = weakref.finalize(self, _free, gl, self._context)
        self._free.atexit = False
        atexit.register(self._free)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        for group in range(3):
            self._option.geomgroup[group] = group not in self.hidden


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) as given.

    Raises:
        ValueError: no pixels.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"frames need a size of at least 1 x 1 pixel, got {height} x {width}")
    return height, width


def _free(gl: Any, context: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
