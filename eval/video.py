"""Films an episode, where offscreen OpenGL is to be had."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from diffpolicy_spec.eval.records import EpisodeRecord
from diffpolicy_spec.eval.subscribers import EpisodeStart, StepEvent, Subscriber
from diffpolicy_spec.optional import require

__all__ = ["VideoRecorder", "encode", "offscreen_backend"]

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
    """Encodes the one episode that is filmed as an mp4, one frame per environment step.

    Args:
        fps: frames a second; the task's control rate plays it in real time.

    Attributes:
        mp4: contents of the file, when the episode is over; until then None.
    """

    def __init__(self, fps: float) -> None:
        self.mp4: bytes | None = None
        self._fps = fps
        self._seed: int | None = None
        self._frames: list[np.ndarray] = []

    def on_episode_start(self, event: EpisodeStart) -> None:
        if event.frame is not None:
            self._seed, self._frames = event.seed, [event.frame]

    def on_step(self, event: StepEvent) -> None:
        if event.seed == self._seed and event.frame is not None:
            self._frames.append(event.frame)

    def on_episode_end(self, record: EpisodeRecord) -> None:
        if record.seed == self._seed:
            self.mp4, self._seed, self._frames = encode(self._frames, self._fps), None, []


def encode(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """An mp4 (H.264) of frames (H, W, 3) uint8."""
    imageio = require("imageio.v2", extra="eval", needed_by="the video")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with imageio.get_writer(path, fps=fps, codec="libx264", quality=8) as writer:
            for frame in frames:
                writer.append_data(frame)
        return path.read_bytes()
