"""Our policies in robomimic's own rollout loop, and robomimic's own environment on the robosuite that is installed.

`create_env(env_args)` is an EnvRobosuite, `as_rollout_policy(policy)` a RolloutPolicy; `run_rollout` and
`rollout_with_stats` of robomimic.utils.train_utils take both.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.env_args import modern_env_args
from diffpolicy_spec.envs.suite import load_robosuite
from diffpolicy_spec.envs.tasks import TASKS, RobosuiteTask
from diffpolicy_spec.eval.rollout import chunk_generator
from diffpolicy_spec.optional import require
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.rotations import actions_from_rot6d

__all__ = ["ChunkedActions", "as_rollout_policy", "create_env"]


class ChunkedActions:
    """A policy asked for one action at a time: receding horizon as in diffusion_policy.

    The history before an episode is its first observation, repeated. A chunk of Ta actions is sampled, executed, and
    only then the next one is; its noise comes from `chunk_generator(seed + episode, chunk)`, and its drafts may start
    from the plan before.

    Args:
        policy: a `DiffusionPolicy`.
        sampler: a `BoundSampler` of it; None: its default.
        seed: of the first episode's noise; the next episodes have seed + 1, ...
    """

    def __init__(self, policy: Any, sampler: Any = None, *, seed: int = 100_000) -> None:
        self.policy, self.sampler = policy, sampler
        self._first_seed, self._episodes = seed, 0
        self._history: deque[dict[str, NDArray[Any]]] = deque(maxlen=policy.config.n_obs_steps)
        self._actions: deque[NDArray[Any]] = deque()
        self._plan: Any = None
        self.chunks = 0

    @property
    def seed(self) -> int:
        """Of the episode under way."""
        return self._first_seed + max(self._episodes - 1, 0)

    def start_episode(self) -> None:
        """Forget the episode before; the first call begins the first one."""
        self._episodes += 1
        self._history.clear()
        self._actions.clear()
        self._plan, self.chunks = None, 0

    def next_action(self, obs: Mapping[str, Any]) -> NDArray[np.float64]:
        """The action for the newest observation.

        Args:
            obs: the policy's keys -> (d,), images (C, H, W) float in [0, 1] or uint8, or (H, W, C); others are ignored.

        Returns:
            (A,) as the environment takes it: rot6d is turned into axis-angle, 7 numbers an arm.

        Raises:
            ObservationError: missing keys, or not what the policy was trained on.
        """
        config = self.policy.config
        missing = [key for key in config.obs_keys if key not in obs]
        if missing:
            raise ObservationError(f"the observation lacks {', '.join(missing)}; it has {', '.join(sorted(obs))}")
        newest = {key: _channels_first(np.asarray(obs[key]), config.image_shapes.get(key)) for key in config.obs_keys}
        for _ in range(1 if self._history else config.n_obs_steps):
            self._history.append(newest)
        if not self._actions:
            output = self.policy.predict_action(
                {key: np.stack([o[key] for o in self._history])[None] for key in config.obs_keys},
                sampler=self.sampler,
                generator=[chunk_generator(self.seed, self.chunks)],
                previous_plan=self._plan,
            )
            self._plan, self.chunks = output.plan, self.chunks + 1
            self._actions.extend(output.action[0].detach().cpu().numpy())
        action = self._actions.popleft().astype(np.float64)
        return actions_from_rot6d(action) if config.action_repr == "absolute_rot6d" else action


def _channels_first(value: NDArray[Any], image: tuple[int, int, int] | None) -> NDArray[Any]:
    """An image of shape (C, H, W) = `image`, also from (H, W, C), which robomimic leaves where it is told to."""
    if image is not None and value.shape != image and value.shape == (*image[1:], image[0]):
        return value.transpose(2, 0, 1)
    return value


def as_rollout_policy(policy: Any, sampler: Any = None, *, seed: int = 100_000) -> Any:
    """The policy as robomimic's RolloutPolicy, for `run_rollout` and `rollout_with_stats`.

    Its environment must take the policy's actions (`create_env` with env_args of absolute actions for a policy with
    action_repr "absolute_rot6d" or "absolute") and give the policy's observations.

    Args:
        policy, sampler, seed: as in `ChunkedActions`.

    Raises:
        ImportError: robomimic is not installed, or what it imports does not work; the message says what.
    """
    return _rollout_policy_class()(ChunkedActions(policy, sampler, seed=seed))


def create_env(env_args: Mapping[str, Any], *, use_images: bool = False, seed: int | None = None) -> Any:
    """robomimic's EnvRobosuite from a dataset's env_args of any age (see `envs.env_args.modern_env_args`).

    Its observations are those of the installed robosuite: the layout of "object" that datasets before 1.5 have is made
    by `make_env_from_args` only.

    Args:
        env_args: {"env_name", "type", "env_version", "env_kwargs"}, e.g. `RobosuiteEnv.env_args()`.
        use_images: observe images, of the dataset's cameras or else of robomimic's for this task at 84 x 84.
        seed: what robosuite draws the model and all episodes from; None: another one each time.

    Raises:
        EnvArgsError, ControllerError: no environment can be made from these env_args.
        ImportError: robomimic or robosuite is not installed.
        RenderUnavailable: MUJOCO_GL names a library that MuJoCo cannot load.
    """
    args = modern_env_args(env_args)
    task = next(t for t in TASKS.values() if isinstance(t, RobosuiteTask) and t.robosuite_name == args["env_name"])
    kwargs = {"renderer": "mujoco", **args["env_kwargs"]}  # robosuite's default loads a viewer
    if seed is not None:
        kwargs["seed"] = seed
    if use_images:
        kwargs = {"camera_names": list(task.image_cameras), "camera_heights": 84, "camera_widths": 84} | kwargs
    images = [f"{name}_image" for name in kwargs.get("camera_names", ())]
    load_robosuite()
    with _mujoco_py(), contextlib.redirect_stdout(io.StringIO()):  # robomimic prints what it does
        env_utils = require("robomimic.utils.env_utils", extra="robomimic")
        require("robomimic.envs.env_robosuite", extra="robomimic")
        _announce({"low_dim": [key for key, _ in task.obs], "rgb": images})
        return env_utils.create_env_from_metadata(
            {**args, "env_kwargs": kwargs}, render_offscreen=use_images, use_image_obs=use_images
        )


def _announce(modalities: dict[str, list[str]]) -> None:
    """Tell robomimic, which keeps it in a global, what kind of observation each key is; what it knows stays."""
    obs_utils = require("robomimic.utils.obs_utils", extra="robomimic")
    known = obs_utils.OBS_MODALITIES_TO_KEYS or {}
    if any(set(keys) - set(known.get(kind, ())) for kind, keys in modalities.items()):
        obs_utils.initialize_obs_utils_with_obs_specs([{"obs": dict(known)}, {"obs": modalities}])


@contextlib.contextmanager
def _mujoco_py() -> Iterator[None]:
    """robomimic 0.3 imports mujoco_py for the name of an exception; robosuite has long left it for mujoco."""
    if "mujoco_py" in sys.modules or importlib.util.find_spec("mujoco_py") is not None:
        yield
        return
    stub: Any = types.ModuleType("mujoco_py")
    stub.builder = types.SimpleNamespace(MujocoException=require("mujoco", extra="sim").FatalError)
    sys.modules["mujoco_py"] = stub
    try:
        yield
    finally:
        del sys.modules["mujoco_py"]


@functools.cache
def _rollout_policy_class() -> Any:
    """The subclass of robomimic's RolloutPolicy; made here because robomimic is not imported before."""
    try:
        algo = require("robomimic.algo", extra="robomimic")
    except RuntimeError as error:  # torchvision fails so beside a torch that it was not built for
        raise ImportError(f"robomimic.algo fails ({error}): install the torchvision that fits this torch") from error

    class DiffusionRolloutPolicy(algo.RolloutPolicy):  # type: ignore[name-defined]
        """robomimic asks for one action a step; `chunks` hands them out."""

        def __init__(self, chunks: ChunkedActions) -> None:
            super().__init__(chunks.policy)
            self.chunks = chunks

        def start_episode(self) -> None:
            self.chunks.start_episode()

        def __call__(self, ob: Mapping[str, Any], goal: Any = None, **_: Any) -> NDArray[np.float64]:
            if goal is not None:
                raise ValueError("this policy takes no goals: use_goals=False")
            return self.chunks.next_action(ob)

        def __repr__(self) -> str:
            return f"DiffusionRolloutPolicy({self.policy.config})"

    return DiffusionRolloutPolicy
