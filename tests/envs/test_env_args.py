"""Environments from a dataset's env_args: today's, robomimic's for robosuite 1.5, and those of robosuite up to 1.4."""

import json

import h5py
import numpy as np
import pytest

from diffpolicy_spec.envs import ControllerError, EnvArgsError, make_env, make_env_from_args, make_env_from_dataset
from diffpolicy_spec.envs.controllers import modern_controllers
from diffpolicy_spec.envs.demonstrate import demonstrate, demonstration_env
from diffpolicy_spec.envs.recording import write_robomimic
from diffpolicy_spec.envs.suite import load_robosuite
from diffpolicy_spec.rotations import quat_xyzw_to_matrix

OLD_CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 2,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def old_args(env_name="Lift", version="1.4.1", controller=OLD_CONTROLLER, **kwargs):
    """env_args as robomimic's datasets for robosuite up to 1.4 have them."""
    return {
        "env_name": env_name,
        "env_version": version,
        "type": 1,
        "env_kwargs": {
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "ignore_done": True,
            "use_object_obs": True,
            "use_camera_obs": False,
            "control_freq": 20,
            "controller_configs": controller,
            "robots": ["Panda"],
            "camera_depths": False,
            "camera_heights": 84,
            "camera_widths": 84,
            "reward_shaping": False,
            **kwargs,
        },
    }


def write_args(path, args):
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = args if isinstance(args, str) else json.dumps(args)
    return path


def arms(env):
    """The live arm controller of each robot."""
    return [robot.part_controllers["right"] for robot in env.unwrapped._env.robots]


def test_old_controllers_get_todays_names():
    (config,) = modern_controllers(OLD_CONTROLLER, ["Panda"])
    part = config["body_parts"]["right"]
    assert config["type"] == "BASIC"
    assert (part["damping_ratio"], part["damping_ratio_limits"]) == (2, [0, 10])
    assert (part["input_type"], part["input_ref_frame"]) == ("delta", "world")
    assert part["gripper"] == {"type": "GRIP"}
    assert not {"damping", "damping_limits", "control_delta"} & set(part)
    (absolute,) = modern_controllers(OLD_CONTROLLER | {"control_delta": False}, ["Panda"])
    assert absolute["body_parts"]["right"] == part | {"input_type": "absolute"}
    assert OLD_CONTROLLER["damping"] == 2


def test_composites_keep_what_robosuite_reads_and_lose_old_names():
    part = {"type": "OSC_POSE", "damping": 3, "damping_ratio": 1, "control_delta": True}
    for parts in ({"right": part}, {"arms": {"right": part}}):
        (config,) = modern_controllers({"type": "BASIC", "body_parts": parts}, ["Panda"])
        got = config["body_parts"]["right"]
        needed = {"interpolation": None, "gripper": {"type": "GRIP"}}
        assert got == {"type": "OSC_POSE", "damping_ratio": 1, "input_type": "delta", **needed}
    (config,) = modern_controllers({"type": "BASIC", "body_parts": {"right": part | {"control_delta": False}}}, ["A"])
    assert config["body_parts"]["right"]["input_type"] == "absolute"
    assert config["body_parts"]["right"]["input_ref_frame"] == "world"


@pytest.mark.parametrize("delta", [True, False])
def test_an_old_dataset_becomes_an_environment_of_today(tmp_path, delta):
    path = write_args(tmp_path / "old.hdf5", old_args(controller=OLD_CONTROLLER | {"control_delta": delta}))
    with make_env_from_dataset(path, terminate_on_success=False) as env:
        (arm,) = arms(env)
        assert env.unwrapped.action_repr == arm.input_type == ("delta" if delta else "absolute")
        assert arm.input_ref_frame == "world"
        np.testing.assert_allclose(arm.kd, 2 * np.sqrt(150) * 2)  # a damping ratio of 2
        assert env.unwrapped._env.lite_physics is False
        before, _ = env.reset(seed=0)
        position, _ = env.unwrapped.eef_pose()
        # robosuite up to 1.4: gripper_to_cube_pos = eef_pos - cube_pos
        np.testing.assert_allclose(before["object"][7:], position - before["object"][:3], atol=1e-12)
        if delta:
            for _ in range(15):
                after, *_ = env.step(np.array([0, 1, 0, 0, 0, 0, -1.0]))
            assert after["robot0_eef_pos"][1] - before["robot0_eef_pos"][1] > 0.04


def test_the_same_actions_move_the_arm_the_same_way_under_old_settings():
    """damping 1 and the world frame are what the single arm has today: only the layout of "object" differs."""
    args = old_args(controller=OLD_CONTROLLER | {"damping": 1}, lite_physics=True, env_lang="lift the cube")
    with make_env("lift", action_repr="delta") as today, make_env_from_args(args) as old:
        a, b = today.reset(seed=3)[0], old.reset(seed=3)[0]
        rng = np.random.default_rng(0)
        for _ in range(20):
            np.testing.assert_allclose(a["object"] * np.repeat([1, -1], [7, 3]), b["object"], atol=1e-9)
            np.testing.assert_allclose(a["robot0_eef_pos"], b["robot0_eef_pos"], atol=1e-9)
            action = rng.uniform(-1, 1, 7)
            a, b = today.step(action)[0], old.step(action)[0]


def test_old_deltas_of_two_arms_are_in_the_world_frame():
    """Transport's robots face each other: the same command moves both hands the same way."""
    args = old_args("TwoArmTransport", robots=["Panda", "Panda"], env_configuration="single-arm-opposed")
    with make_env_from_args(args) as env:
        before, _ = env.reset(seed=0)
        for _ in range(15):
            after, *_ = env.step(np.array([1, 0, 0, 0, 0, 0, -1.0] * 2))
        for arm in (0, 1):
            moved = after[f"robot{arm}_eef_pos"] - before[f"robot{arm}_eef_pos"]
            assert moved[0] > 0.04
            assert abs(moved[1]) < 0.02


@pytest.mark.parametrize(("env_name", "arms"), [("NutAssemblySquare", 1), ("TwoArmTransport", 2)])
def test_robomimics_datasets_for_robosuite_15_run_as_robosuite_runs_them(env_name, arms):
    """They hold composites with old names, which robosuite 1.5 ignores: with the usual damping nothing changes."""
    part = OLD_CONTROLLER | {"damping": 1, "input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    composite = {"type": "BASIC", "body_parts": {"right": part}}
    kwargs = {"robots": ["Panda"] * arms, "lite_physics": False}
    kwargs |= {"env_configuration": "single-arm-opposed"} if arms == 2 else {}
    args = old_args(env_name, version="1.5.1", controller=composite, **kwargs)
    bare = load_robosuite().make(env_name, **args["env_kwargs"], renderer="mujoco", hard_reset=False, seed=0)
    with make_env_from_args(args, terminate_on_success=False) as env:
        assert env.unwrapped.object_layout == "1.5"
        episode = np.random.default_rng(np.random.default_rng(3).integers(2**63))
        bare.rng.bit_generator.state = episode.bit_generator.state
        obs, raw = env.reset(seed=3)[0], bare.reset()
        rng = np.random.default_rng(0)
        for _ in range(8):
            np.testing.assert_array_equal(obs["object"], raw["object-state"])
            for key in list(obs)[1:]:
                np.testing.assert_array_equal(obs[key], raw[key])
            action = rng.uniform(-1, 1, 7 * arms)
            obs, raw = env.step(action)[0], bare.step(action)[0]


def pose(position, quat):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = quat_xyzw_to_matrix(quat), position
    return out


@pytest.mark.parametrize(("env_name", "task", "objects"), [("PickPlaceCan", "can", 1), ("ToolHang", "tool_hang", 3)])
def test_old_objects_are_first_in_the_world_and_then_seen_from_the_gripper(env_name, task, objects):
    with make_env_from_args(old_args(env_name)) as old, make_env(task, action_repr="delta") as today:
        obs, _ = old.reset(seed=1)
        now = today.reset(seed=1)[0]["object"]
        for i in range(objects):
            position, quat, seen_position, seen_quat = np.split(obs["object"][14 * i : 14 * i + 14], [3, 7, 10])
            np.testing.assert_allclose(np.concatenate([position, quat]), now[14 * i + 7 : 14 * i + 14], atol=1e-6)
            seen = np.linalg.inv(pose(obs["robot0_eef_pos"], obs["robot0_eef_quat"])) @ pose(position, quat)
            np.testing.assert_allclose(pose(seen_position, seen_quat), seen, atol=1e-6)
        np.testing.assert_array_equal(obs["object"][14 * objects :], now[14 * objects :])


def test_old_transport_has_its_flags_last():
    args = old_args("TwoArmTransport", robots=["Panda", "Panda"])
    with make_env_from_args(args) as env:
        obs, _ = env.reset(seed=0)
        raw = env.unwrapped._env._get_observations()
        grippers = ("gripper0_to_payload", "gripper0_to_lid_handle", "gripper1_to_payload", "gripper1_to_trash")
        np.testing.assert_array_equal(obs["object"][27:39], np.concatenate([raw[name] for name in grippers]))
        flags = [raw["payload_in_target_bin"], raw["trash_in_trash_bin"]]
        np.testing.assert_array_equal(obs["object"][39:], flags)


def test_the_version_decides_the_layout():
    composite = {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "damping": 1, "control_delta": True}}}
    for version, controller, layout, lite in [
        ("1.5.1", composite, "1.5", True),
        ("1.2.0", OLD_CONTROLLER, "1.4", False),
        ("0.3.0", OLD_CONTROLLER, "1.4", False),
        (None, OLD_CONTROLLER, "1.4", False),
        (None, composite, "1.5", True),
    ]:
        args = old_args(controller=controller, version=version)
        with make_env_from_args({k: v for k, v in args.items() if v is not None}) as env:
            assert (env.unwrapped.object_layout, env.unwrapped._env.lite_physics) == (layout, lite)


def test_other_actions_than_the_datasets_can_be_asked_for():
    with make_env_from_args(old_args(), action_repr="absolute_rot6d") as env:
        assert env.action_space.shape == (10,)
        (arm,) = arms(env)
        assert (arm.input_type, arm.input_ref_frame) == ("absolute", "world")
        np.testing.assert_allclose(arm.kd, 2 * np.sqrt(150) * 2)


def test_what_dps_collect_writes_comes_back(tmp_path):
    path = tmp_path / "lift.hdf5"
    with demonstration_env("lift", 60) as env:
        episode = demonstrate(env, 0)
        args = env.unwrapped.env_args()
        write_robomimic(path, [episode], env_args=args, model_xml=env.unwrapped.model_xml(), seed=0)
    with make_env_from_dataset(path, terminate_on_success=False, horizon=60) as again:
        assert again.unwrapped.env_args() == args
        obs, _ = again.reset(seed=0)
        for i, action in enumerate(episode.actions):
            np.testing.assert_array_equal(again.unwrapped.sim_state(), episode.states[i])
            for key, values in episode.obs.items():
                np.testing.assert_array_equal(obs[key], values[i])
            obs, *_ = again.step(action)


def test_env_args_come_back_with_cameras_and_old_layouts():
    args = old_args(use_camera_obs=True, camera_names=["agentview"], camera_heights=64, camera_widths=48)
    with make_env_from_args(args) as env:
        assert env.observation_space["agentview_image"].shape == (64, 48, 3)
        written = env.unwrapped.env_args()
    assert written["object_layout"] == "1.4"
    with make_env_from_args(json.loads(json.dumps(written))) as again:
        assert again.unwrapped.env_args() == written
        assert again.observation_space["agentview_image"].shape == (64, 48, 3)
    two = {"camera_names": ["agentview", "frontview"], "camera_heights": [64, 32], "camera_widths": 48}
    with make_env_from_args(old_args(use_camera_obs=True, **two)) as env:
        written_two = env.unwrapped.env_args()
        assert {key: written_two["env_kwargs"][key] for key in two} == two
    with make_env_from_args(written_two, cameras=("frontview",)) as again:
        assert again.unwrapped.images == {"frontview_image": (32, 48)}
    with pytest.raises(EnvArgsError, match="camera_heights does not say the size of camera birdview's images"):
        make_env_from_args(written_two, cameras=("birdview",))
    with make_env_from_args(written, cameras=()) as blind:
        assert list(blind.observation_space) == [
            "object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (old_args(controller={"type": "JOINT_POSITION"}), ControllerError, "'JOINT_POSITION'; known .*: OSC_POSE"),
        (old_args(controller={"type": "OSC"}), ControllerError, "unknown controller 'OSC'"),
        (old_args(controller={}), ControllerError, "unknown controller None"),
        (old_args(controller="OSC_POSE"), ControllerError, "must be a mapping"),
        (old_args(controller=OLD_CONTROLLER | {"impedance_mode": "variable"}), ControllerError, "'variable'"),
        (old_args(controller={"type": "WHOLE_BODY_IK", "body_parts": {}}), ControllerError, "'WHOLE_BODY_IK'"),
        (old_args(controller={"type": "BASIC", "body_parts": {"legs": {}}}), ControllerError, "no arm, only legs"),
        (
            old_args(controller=OLD_CONTROLLER | {"input_type": "absolute"}),
            ControllerError,
            "control_delta is true and input_type is 'absolute'",
        ),
        (old_args(controller=[OLD_CONTROLLER] * 2), ControllerError, "2 controller configs for 1 robots"),
        (old_args("Door"), EnvArgsError, "'Door' is none of the tasks here: Lift, PickPlaceCan"),
        (old_args() | {"type": 2}, EnvArgsError, "type 2; only robosuite"),
        (old_args(version="newest"), EnvArgsError, "'newest' is not a version"),
        (old_args(robots=["Panda", "Panda"]), EnvArgsError, "2 robots; Lift needs 1"),
        (old_args(gravity=3), EnvArgsError, "takes no gravity for Lift"),
        (old_args("PickPlaceCan", single_object_mode=0), EnvArgsError, "robosuite refuses .*single_object_mode"),
        (
            old_args(use_camera_obs=True, camera_names=["agentview"], camera_heights=[84, 96]),
            EnvArgsError,
            "2 camera_heights for 1 cameras: give image_size",
        ),
        ({"env_name": "Lift"}, EnvArgsError, "mapping of env_name"),
        (old_args() | {"object_layout": "1.3"}, EnvArgsError, "object_layout must be one of 1.5, 1.4"),
    ],
)
def test_env_args_that_cannot_be_used_say_why(args, error, message):
    with pytest.raises(error, match=message):
        make_env_from_args(args)


def test_files_that_say_nothing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.hdf5"):
        make_env_from_dataset(tmp_path / "missing.hdf5")
    (tmp_path / "text.hdf5").write_text("no")
    with pytest.raises(EnvArgsError, match="not a readable hdf5"):
        make_env_from_dataset(tmp_path / "text.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(EnvArgsError, match="no group 'data'"):
        make_env_from_dataset(tmp_path / "empty.hdf5")
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(EnvArgsError, match=r"bare.hdf5 has no env_args .*make_env"):
        make_env_from_dataset(tmp_path / "bare.hdf5")
    with pytest.raises(EnvArgsError, match="not JSON"):
        make_env_from_dataset(write_args(tmp_path / "torn.hdf5", '{"env_name"'))
