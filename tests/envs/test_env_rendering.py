"""Frames: in processes of their own, because MuJoCo and PyOpenGL settle on a library once per process."""

import os
import subprocess
import sys
from ctypes.util import find_library

import pytest

FRAME = """
import numpy as np
from diffpolicy_spec.envs import RenderUnavailable, make_env
def episode(render):
    with make_env("lift", render_mode="rgb_array", render_size=(96, 128)) as env:
        env.reset(seed=0)
        seen = []
        for i in range(12):
            action = np.array([-0.1, 0.01 * i, 0.9, 1, 0, 0, 0, -1, 0, 1])
            obs, *_ = env.step(action)
            seen.append(env.unwrapped.sim_state())
            if render:
                frame = env.render()
                assert frame.shape == (96, 128, 3) and frame.dtype == np.uint8, frame.shape
                assert frame.std() > 20
                top, bottom = frame[:12].mean(), frame[-24:].mean()
                assert bottom > top, "the table is below the robot"
    return np.array(seen)
try:
    shown = episode(True)
except RenderUnavailable as error:
    print("unavailable:", error)
else:
    np.testing.assert_array_equal(shown, episode(False))
    print("drawn")
"""


def run(mujoco_gl):
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if mujoco_gl is not None:
        environment["MUJOCO_GL"] = mujoco_gl
    return subprocess.run([sys.executable, "-c", FRAME], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(("mujoco_gl", "library"), [("egl", "EGL"), ("osmesa", "OSMesa"), (None, "EGL")])
def test_frames_are_drawn_and_leave_the_episode_as_it_is(mujoco_gl, library):
    if not find_library(library):
        pytest.skip(f"lib{library} is not installed")
    done = run(mujoco_gl)
    if "unavailable:" in done.stdout:
        pytest.skip(done.stdout)
    assert done.stdout.strip() == "drawn", done.stdout + done.stderr


def test_without_opengl_only_drawing_fails():
    done = run("disabled")
    assert done.stdout.startswith("unavailable: MUJOCO_GL=disabled"), done.stdout + done.stderr
    assert "egl" in done.stdout


def test_unknown_camera_is_named():
    program = "from diffpolicy_spec.envs import make_env\n"
    program += "env = make_env('lift', render_mode='rgb_array', camera='nowhere'); env.reset(seed=0); env.render()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "no camera 'nowhere'; it has" in done.stderr
    assert "agentview" in done.stderr


def test_a_renderer_that_nobody_closes_ends_quietly():
    program = """
from diffpolicy_spec.envs import RenderUnavailable, make_env
env = make_env("lift", render_mode="rgb_array", cameras=["agentview"])
try:
    env.reset(seed=0)
    env.render()
except RenderUnavailable as error:
    print("unavailable:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if "unavailable:" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
