"""The tasks that environments, recorders and evaluation know by name: one row each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TASKS", "RobosuiteTask", "Task", "UnknownObservationError", "UnknownTaskError", "get_task"]


class UnknownTaskError(ValueError):
    """A task name that is not in the table."""


class UnknownObservationError(ValueError):
    """An observation that a task does not have."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task is, whatever simulates it.

    Attributes:
        name: how commands and configs name it.
        env_id: gymnasium id.
        build: "module:function" that makes the environment, called as function(task, action_repr=..., **kwargs).
        extra: the extra of this package that brings its simulator.
        horizon: steps of an episode, as in diffusion_policy's evaluation.
        obs: observation keys and their lengths, in diffusion_policy's order.
        further: observations that its environment gives when they are asked for.
        images: of these the images, whose size is chosen; robosuite's have other cameras, too.
        aliases: what LeRobot calls its observations: (its name, the name here).
        action_reprs: what its actions may be; the first is the default.
        control_freq: actions a second, Hz.
        zero_holds: whether an action of zeros keeps the robot where it is, as velocities do; targets are repeated.
    """

    name: str
    env_id: str
    build: str
    extra: str
    horizon: int
    obs: tuple[tuple[str, int], ...]
    further: tuple[tuple[str, int], ...] = ()
    images: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    action_reprs: tuple[str, ...]
    control_freq: float
    zero_holds: bool = False

    def size_of(self, key: str) -> int:
        """Length of one of its low-dimensional observations.

        Raises:
            UnknownObservationError: it has none of this name; the message lists those it has.
        """
        sizes = dict(self.obs + self.further)
        if key not in sizes:
            known = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            raise UnknownObservationError(f"task '{self.name}' has no observation {key!r}; it has {known}")
        return sizes[key]


@dataclass(frozen=True, kw_only=True)
class RobosuiteTask(Task):
    """A robomimic task on robosuite, with robomimic's low-dimensional observation; "object" is its "object-state".

    Attributes:
        robosuite_name: name given to robosuite.make.
        robots: one robosuite robot per arm.
        camera: the camera that render() shows.
        image_cameras: the cameras of robomimic's image observations, see `RobosuiteEnv`.
    """

    build: str = "diffpolicy_spec.envs.factory:build_robosuite"
    extra: str = "sim"
    action_reprs: tuple[str, ...] = ("absolute_rot6d", "absolute", "delta")
    control_freq: int = 20
    robosuite_name: str
    robots: tuple[str, ...] = ("Panda",)
    camera: str = "agentview"
    image_cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")


def _arm(i: int) -> tuple[tuple[str, int], ...]:
    return (f"robot{i}_eef_pos", 3), (f"robot{i}_eef_quat", 4), (f"robot{i}_gripper_qpos", 2)


def _joints(i: int) -> tuple[tuple[str, int], ...]:
    angles = tuple((f"robot{i}_joint_{what}", 7) for what in ("pos", "pos_cos", "pos_sin", "vel"))
    return (*angles, (f"robot{i}_gripper_qvel", 2))


def _robosuite(name: str, short: str, robosuite_name: str, horizon: int, objects: int, arms: int = 1) -> RobosuiteTask:
    over = ("agentview",) if arms == 1 else tuple(f"shouldercamera{i}" for i in range(arms))
    cameras = tuple(camera for i in range(arms) for camera in (over[i], f"robot{i}_eye_in_hand"))
    return RobosuiteTask(
        name=name,
        env_id=f"diffpolicy_spec/{short}-v0",
        robosuite_name=robosuite_name,
        robots=("Panda",) * arms,
        horizon=horizon,
        obs=(("object", objects), *(pair for i in range(arms) for pair in _arm(i))),
        further=tuple(pair for i in range(arms) for pair in _joints(i)),
        camera=over[0],
        image_cameras=cameras,
        images=tuple(f"{camera}_image" for camera in cameras),
        aliases=tuple((f"observation.images.{camera}", f"{camera}_image") for camera in cameras),
    )


def _pusht(name: str, short: str, module: str, obs: tuple[tuple[str, int], ...]) -> Task:
    return Task(
        name=name,
        env_id=f"diffpolicy_spec/{short}-v0",
        build=f"diffpolicy_spec.envs.{module}:build_{module}",
        extra="pusht",
        horizon=300,
        obs=obs,
        further=tuple(pair for pair in _PUSHT_ALL if pair not in obs),
        images=("image",),
        aliases=(
            ("observation.state", "agent_pos"),
            ("observation.environment_state", "corners"),
            ("observation.image", "image"),
        ),
        action_reprs=("raw",),
        control_freq=10,
    )


_PUSHT_STATE = (("state", 5),)  # agent x, y, block x, y, angle
_PUSHT_KEYPOINTS = (("keypoint", 18), ("agent_pos", 2))  # x, y of nine points of the block; agent x, y
_PUSHT_ALL = (*_PUSHT_STATE, *_PUSHT_KEYPOINTS, ("corners", 16))  # corners: x, y of the block's, as gym-pusht's


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # object: cube_pos (3), cube_quat xyzw (4), gripper_to_cube_pos (3)
        _robosuite("lift", "Lift", "Lift", 400, 10),
        # object of can and square: pos (3) and quat xyzw (4) seen from the gripper, pos (3), quat (4) in the world;
        # robosuite 1.5 computes the first seven from the object's pose one step ago: they are 0 at reset
        _robosuite("can", "Can", "PickPlaceCan", 400, 14),
        _robosuite("square", "Square", "NutAssemblySquare", 400, 14),
        _robosuite("transport", "Transport", "TwoArmTransport", 700, 41, arms=2),
        _robosuite("tool_hang", "ToolHang", "ToolHang", 700, 44),
        _pusht("pusht", "PushT", "pusht", _PUSHT_STATE),
        _pusht("pusht_keypoints", "PushTKeypoints", "pusht", _PUSHT_KEYPOINTS),
        _pusht("pusht_mujoco", "PushTMujoco", "pusht_mujoco", _PUSHT_STATE),
        _pusht("pusht_mujoco_keypoints", "PushTMujocoKeypoints", "pusht_mujoco", _PUSHT_KEYPOINTS),
        Task(
            name="kitchen",
            env_id="diffpolicy_spec/Kitchen-v0",
            build="diffpolicy_spec.envs.kitchen:build_kitchen",
            extra="kitchen",
            horizon=280,
            # joint positions (9), velocities (9), the kitchen's positions (21), velocities (20)
            obs=(("observation", 59),),
            action_reprs=("raw",),
            control_freq=12.5,
            zero_holds=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """The row of a task.

    Raises:
        UnknownTaskError: no such task; the message lists those there are.
    """
    try:
        return TASKS[name]
    except (KeyError, TypeError):
        raise UnknownTaskError(f"unknown task {name!r}; known tasks: {', '.join(sorted(TASKS))}") from None
