"""Image observations: robosuite's own pixels, the right way up, several cameras of one context, physics untouched."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffpolicy_spec.envs import RenderUnavailable, get_task, make_env
from diffpolicy_spec.envs.suite import load_robosuite


def image_env(task="lift", **kwargs):
    """An environment that observes images, after reset; skips where nothing can be drawn."""
    env = make_env(task, action_repr="delta", terminate_on_success=False, **kwargs)
    try:
        env.reset(seed=3)
    except RenderUnavailable as error:
        env.close()
        pytest.skip(str(error))
    return env


def robosuite_env(env):
    """robosuite's own environment with camera observations, which will draw the same episode."""
    base = env.unwrapped
    try:
        theirs = load_robosuite().make(
            base.task.robosuite_name,
            **base._env_kwargs,
            use_camera_obs=True,
            has_offscreen_renderer=True,
            has_renderer=False,
            renderer="mujoco",
            camera_names=list(base.cameras),
            camera_heights=[height for height, _ in base.images.values()],
            camera_widths=[width for _, width in base.images.values()],
            hard_reset=False,
            seed=0,
        )
    except ImportError as error:
        pytest.skip(f"robosuite cannot draw here: {error}")
    return theirs


@pytest.mark.parametrize("task", ["lift", "transport"])
def test_images_are_robosuites_turned_upright(task):
    with image_env(task, cameras=get_task(task).image_cameras) as env:
        theirs = robosuite_env(env)
        env.reset(seed=3)
        episode = np.random.default_rng(np.random.default_rng(3).integers(2**63))
        theirs.rng.bit_generator.state = episode.bit_generator.state
        ours_now, _ = env.reset(seed=3)
        theirs_now = theirs.reset()
        for _ in range(3):
            np.testing.assert_allclose(theirs_now["object-state"], ours_now["object"], atol=1e-9)
            for camera in env.unwrapped.cameras:
                image = ours_now[f"{camera}_image"].astype(int)
                # robosuite's first row is the lowest; robomimic turns it, and so do we.
                assert np.abs(theirs_now[f"{camera}_image"][::-1] - image).mean() < 0.1
                assert np.abs(theirs_now[f"{camera}_image"] - image).mean() > 10
                assert image.std() > 20
            action = np.random.default_rng(4).uniform(-1, 1, env.action_space.shape)
            ours_now, theirs_now = env.step(action)[0], theirs.step(action)[0]
        theirs.close()


def test_images_stand_behind_the_state_in_the_observation():
    cameras = get_task("lift").image_cameras
    with image_env(cameras=cameras) as env:
        obs, _ = env.reset(seed=0)
        keys = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
        assert list(obs) == list(env.observation_space) == [*keys, *(f"{name}_image" for name in cameras)]
        assert env.observation_space.contains(obs)
        for name in cameras:
            assert obs[f"{name}_image"].shape == (84, 84, 3)
            assert obs[f"{name}_image"].dtype == np.uint8
        assert not np.array_equal(obs["agentview_image"], obs["robot0_eye_in_hand_image"])
        assert env.render() is None


def test_gymnasium_checker_passes_with_images():
    with image_env(cameras=("agentview",), image_size=24) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        # Advice, not faults: observations are unbounded, images smaller than a convolution likes.
        for advice in (".*infinity.*", ".*is different from the unwrapped version.*", ".*smaller than 36x36.*"):
            warnings.filterwarnings("ignore", message=advice)
        check_env(env, skip_render_check=True)


def test_images_do_not_touch_the_simulation():
    with image_env(cameras=("agentview",), image_size=(32, 48)) as seeing, make_env(
        "lift", action_repr="delta", terminate_on_success=False
    ) as blind:  # fmt: skip
        a, b = seeing.reset(seed=7)[0], blind.reset(seed=7)[0]
        assert a["agentview_image"].shape == (32, 48, 3)
        rng = np.random.default_rng(0)
        for _ in range(6):
            for key in b:
                np.testing.assert_array_equal(a[key], b[key])
            np.testing.assert_array_equal(seeing.unwrapped.sim_state(), blind.unwrapped.sim_state())
            action = rng.uniform(-1, 1, 7)
            a, b = seeing.step(action)[0], blind.step(action)[0]
        assert seeing.unwrapped.model_xml() == blind.unwrapped.model_xml()


def test_a_seed_draws_the_same_images_again_beside_frames_of_another_size():
    with image_env(cameras=("robot0_eye_in_hand",), render_mode="rgb_array", render_size=(600, 800)) as env:
        first = env.reset(seed=1)[0]["robot0_eye_in_hand_image"]
        frame = env.render()
        assert frame.shape == (600, 800, 3)
        assert frame.std() > 20
        env.step(np.ones(7))
        np.testing.assert_array_equal(env.reset(seed=1)[0]["robot0_eye_in_hand_image"], first)


def test_wrong_cameras_and_sizes_are_named_at_once():
    with pytest.raises(ValueError, match=r"no camera wrist, top; it has .*agentview"):
        make_env("lift", cameras=("agentview", "wrist", "top"))
    with pytest.raises(ValueError, match="list of names, got 'agentview'"):
        make_env("lift", cameras="agentview")
    with pytest.raises(ValueError, match=r"at least 1 x 1 pixel, got 0 x 84"):
        make_env("lift", cameras=("agentview",), image_size=(0, 84))


def test_what_is_observed_may_be_chosen():
    images = {"agentview_image": (24, 32), "birdview_image": (16, 16)}
    with image_env(obs=("robot0_joint_pos", "object"), images=images) as env:
        observation, _ = env.reset(seed=3)
        assert list(observation) == list(env.observation_space) == ["robot0_joint_pos", "object", *images]
        assert [observation[key].shape for key in images] == [(24, 32, 3), (16, 16, 3)]
        np.testing.assert_array_equal(observation["robot0_joint_pos"], robosuite_joints(env))
        env.unwrapped.observe_images = False
        assert list(env.step(np.zeros(7))[0]) == ["robot0_joint_pos", "object"]
        env.unwrapped.observe_images = True
        assert list(env.step(np.zeros(7))[0]) == ["robot0_joint_pos", "object", *images]
    with make_env("lift", obs=("robot0_eef_pos",), object_layout="1.4") as env:  # which is made with the gripper's pose
        assert list(env.reset(seed=3)[0]) == ["robot0_eef_pos"]
    for wrong, message in (
        ({"obs": ("cube",)}, r"task 'lift' has no observation 'cube'; it has object \(10\)"),
        ({"obs": "object"}, "obs must be a list"),
        ({"images": {"front": (8, 8)}}, "images are named <camera>_image, got front"),
        ({"images": {"front_image": (8, 8)}}, "the model has no camera front; it has frontview"),
    ):
        with pytest.raises(ValueError, match=message):
            make_env("lift", **wrong)


def robosuite_joints(env):
    inner = env.unwrapped._env
    return inner.sim.data.qpos[inner.robots[0]._ref_joint_pos_indexes]
