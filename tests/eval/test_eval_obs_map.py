"""What a policy observes, in the terms of the task's environment: by name, by LeRobot's names, joined, or as told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_policy import OBS_DIMS, tiny_config

from diffpolicy_spec.data.obs_map import ObsMap, obs_map_of
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.observations import MappedObservations
from diffpolicy_spec.envs.tasks import get_task
from diffpolicy_spec.eval.obs_map import map_observations
from diffpolicy_spec.policies import EncoderConfig

LIFT = get_task("lift")


def mapped(task="lift", given=None, obs_dims=None, image_shapes=None):
    encoder = {"encoder": EncoderConfig()} if image_shapes else {}
    config = tiny_config(obs_dims=obs_dims or {}, image_shapes=image_shapes or {}, **encoder)
    return map_observations(config, get_task(task), given or {})


def test_a_policy_of_the_task_observes_it_as_it_is():
    assert mapped(obs_dims=OBS_DIMS) is None
    assert mapped(obs_dims={"robot0_eef_pos": 3}) is None


def test_diffusion_policys_single_obs_is_everything_in_order():
    assert mapped(obs_dims={"obs": 19}).vectors == (("obs", tuple(OBS_DIMS)),)
    assert mapped("pusht_keypoints", obs_dims={"obs": 20}).vectors == (("obs", ("keypoint", "agent_pos")),)
    told = mapped(given={"obs": ["robot0_eef_pos", "object"]}, obs_dims={"obs": 13})
    assert told.vectors == (("obs", ("robot0_eef_pos", "object")),)


def test_further_observations_are_there_on_demand():
    assert mapped(obs_dims={"robot0_joint_pos": 7}).obs == ("robot0_joint_pos",)
    assert mapped("pusht", obs_dims={"agent_pos": 2}).obs == ("agent_pos",)


def test_images_by_name():
    shapes = {"agentview_image": (3, 48, 64), "robot0_eye_in_hand_image": (3, 84, 84), "birdview_image": (3, 20, 20)}
    found = mapped(obs_dims={"robot0_eef_pos": 3}, image_shapes=shapes)
    assert found.sizes() == {key: shape[1:] for key, shape in shapes.items()}
    assert found.obs == ("robot0_eef_pos",)
    alone = mapped(image_shapes={"agentview_image": (3, 48, 64)})
    assert (alone.obs, alone.sizes()) == ((), {"agentview_image": (48, 64)})


def test_lerobots_names():
    found = mapped("pusht", obs_dims={"observation.state": 2}, image_shapes={"observation.image": (3, 96, 96)})
    assert found.sources() == {"observation.state": ["agent_pos"], "observation.image": ["image"]}
    both = {"observation.state": 2, "observation.environment_state": 16}
    assert mapped("pusht", obs_dims=both).obs == ("agent_pos", "corners")
    one = mapped("lift", obs_dims={"object": 10}, image_shapes={"observation.images.agentview": (3, 20, 20)})
    assert one.images == (("observation.images.agentview", "agentview_image", (20, 20)),)


def test_what_cannot_be_guessed_is_told():
    dims, shapes = {"observation.state": 9}, {"observation.images.front": (3, 32, 32)}
    given = {
        "observation.state": ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"],
        "observation.images.front": "agentview_image",
    }
    assert mapped(given=given, obs_dims=dims, image_shapes=shapes).sources() == {
        "observation.state": given["observation.state"], "observation.images.front": ["agentview_image"],
    }  # fmt: skip
    wanted = r"the policy observes observation.state \(9\), observation.images.front \(3, 32, 32\); "
    there = r"task 'lift' gives object \(10\), .*on demand robot0_joint_pos \(7\).*images agentview_image, .* any size"
    with pytest.raises(ValueError, match=f"{wanted}{there}: say which are which with obs_map="):
        mapped(obs_dims=dims, image_shapes=shapes)
    with pytest.raises(ValueError, match=r"task 'kitchen' gives observation \(59\); no images"):
        mapped("kitchen", obs_dims={"observation": 59}, image_shapes=shapes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state": ["object"]}, r"obs_map names state, which the policy does not observe; it observes obs \(19\)"),
        ({"obs": ["object"]}, r"'obs' has 19 dimensions, object \(10\) make 10"),
        ({"obs": ["cube"]}, r"task 'lift' has no observation 'cube'; it has object \(10\)"),
        ({"obs": []}, "must be a key or a list of keys"),
        ({"obs": 3}, "must be a key or a list of keys"),
        ({"front_image": ["a_image", "b_image"]}, "is one image"),
    ],
)
def test_wrong_maps(given, message):
    with pytest.raises(ValueError, match=message):
        mapped(given=given, obs_dims={"obs": 19}, image_shapes={"front_image": (3, 8, 8)})


def test_depth_is_not_given():
    with pytest.raises(ValueError, match="'agentview_image' has 4 channels; environments give RGB"):
        mapped(image_shapes={"agentview_image": (4, 8, 8)})


def test_the_setting_is_for_all_tasks_or_by_task():
    assert obs_map_of(None, "lift", ["lift"]) == {}
    assert obs_map_of({"obs": ["object"]}, "lift", ["lift", "can"]) == {"obs": ["object"]}
    assert obs_map_of({"lift": {"obs": ["object"]}}, "lift", ["lift", "can"]) == {"obs": ["object"]}
    assert obs_map_of({"lift": {"obs": ["object"]}}, "can", ["lift", "can"]) == {}
    with pytest.raises(ValueError, match="obs_map must map"):
        obs_map_of("object", "lift", ["lift"])


def test_one_image_in_two_sizes_is_refused():
    twice = ObsMap(images=(("a", "agentview_image", (8, 8)), ("b", "agentview_image", (9, 9))))
    with pytest.raises(ValueError, match="wanted in two sizes"):
        twice.sizes()


def test_observations_are_joined_and_pixels_turned():
    names = ObsMap((("state", ("agent_pos", "keypoint")), ("obs", ("state",))), (("front", "image", (24, 32)),))
    config = EnvConfig("pusht", "raw", names)
    assert json.loads(json.dumps(config.changes)) == config.changes
    env, plain = config.make(), EnvConfig("pusht", "raw").make()
    assert isinstance(env, MappedObservations)
    observation, _ = env.reset(seed=5)
    state = plain.reset(seed=5)[0]["state"]
    assert list(observation) == list(env.observation_space) == ["state", "obs", "front"]
    np.testing.assert_array_equal(observation["obs"], state)
    np.testing.assert_array_equal(observation["state"][:2], state[:2])
    assert observation["state"].shape == (20,)
    front = observation["front"]
    assert (front.shape, front.dtype) == ((3, 24, 32), np.uint8)
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(env.unwrapped._image((24, 32)).transpose(2, 0, 1), front)
    env.look(False)
    assert list(env.step(np.array([100.0, 100.0]))[0]) == ["state", "obs"]
    env.look(True)
    assert "front" in env.step(np.array([100.0, 100.0]))[0]
    env.close(), plain.close()


def test_env_args_of_another_task_are_refused():
    with pytest.raises(ValueError, match="env_args are of 'Lift', which is not task 'can'"):
        EnvConfig("can", "delta", env_args=json.dumps({"env_name": "Lift"}))
