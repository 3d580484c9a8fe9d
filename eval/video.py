"""Films the first episode of a run, where offscreen OpenGL is to be had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from diffpolicy_spec.eval.records import EpisodeRecord
from diffpolicy_spec.eval.subscribers import EpisodeStart, StepEvent, Subscriber
from diffpolicy_spec.optional import require

__all__ = ["VideoRecorder", "offscreen_backend"]

_PROBE = """
import mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
from OpenGL import GL
assert GL.glGetString(GL.GL_RENDERER), "the context has no renderer"
print("works", flush=True)
"""


@cache
def _works(backend: str) -> bool:
    """Whether MuJoCo gets an OpenGL context from this backend; asked in its own process, which a failure may abort."""
    environment: Mapping[str, str] = {**os.environ, "MUJOCO_GL": backend}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return "works" in probe.stdout


def offscreen_backend() -> str | None:
    """A value for MUJOCO_GL that renders offscreen on this machine, or None.

    What the variable already says is the only candidate: MuJoCo and robosuite read it when they are imported. Otherwise
    egl (a GPU, or Mesa in software) is tried before osmesa (software).
    """
    chosen = os.environ.get("MUJOCO_GL")
    candidates = [chosen] if chosen else ["egl", "osmesa"]
    return next((backend for backend in candidates if _works(backend)), None)


class VideoRecorder(Subscriber):
    """Writes the first episode to an mp4, one frame per environment step; its environment must render rgb_array frames.

    Args:
        path: of the mp4.
        fps: frames a second; the task's control rate plays it in real time.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = fps
        self._seed: int | None = None
        self._writer: Any = None

    def on_episode_start(self, event: EpisodeStart) -> None:
        if event.order == 0:
            imageio = require("imageio.v2", extra="eval", needed_by="the video")
            self._seed = event.seed
            self._writer = imageio.get_writer(self.path, fps=self._fps, codec="libx264", quality=8)
            self._writer.append_data(event.env.render())

    def on_step(self, event: StepEvent) -> None:
        if event.seed == self._seed and self._writer is not None:
            self._writer.append_data(event.env.render())

    def on_episode_end(self, record: EpisodeRecord) -> None:
        if record.seed == self._seed:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
