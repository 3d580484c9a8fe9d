"""Where episodes take place: environments in this process, or one to a process, given whole slices of actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

import numpy as np

from diffpolicy_spec.eval.processes import DeadPeerError, Peer

__all__ = ["Begun", "Executed", "LocalWorld", "Lost", "ProcessWorld", "Start", "World"]

Observation = dict[str, np.ndarray]


@dataclass(frozen=True)
class Start:
    """An episode to begin.

    Attributes:
        seed: of the environment's reset.
        film: whether frames are wanted.
    """

    seed: int
    film: bool = False


@dataclass(frozen=True)
class Begun:
    """An episode was reset.

    Attributes:
        observation: the first one.
        frame: (H, W, 3) uint8, where it is filmed.
    """

    observation: Observation
    frame: np.ndarray | None = None


@dataclass(frozen=True)
class Executed:
    """A slice of n actions, or as many as there were before the episode ended, was executed.

    Attributes:
        observations: n, one after each action; images only where the policy looks.
        rewards: n.
        success: whether any of these steps solved the task.
        done: whether the environment ended the episode.
        metrics: further results of the last step, by name; {} where the task has none.
        frames: n of (H, W, 3) uint8, where it is filmed; else none.
    """

    observations: tuple[Observation, ...]
    rewards: tuple[float, ...]
    success: bool
    done: bool
    metrics: Mapping[str, float]
    frames: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Lost:
    """The process of an environment died, and its episode with it; another one has taken its place.

    Attributes:
        how: it ended, in words.
    """

    how: str


class World(Protocol):
    """Environments of one task in numbered places, 0 <= i < len(world)."""

    def __len__(self) -> int: ...

    def reset(self, starts: Mapping[int, Start]) -> dict[int, Begun | Lost]:
        """Begin episodes at these places."""

    def execute(self, actions: Mapping[int, np.ndarray]) -> dict[int, Executed | Lost]:
        """Execute slices (n, Da) at these places, until they are used up or the episode ends."""

    def close(self) -> None:
        """Free the environments."""


def _execute(env: Any, actions: np.ndarray, film: bool, looks: int | None) -> Executed:
    observations, rewards, frames = [], [], []
    success = done = False
    info: Mapping[str, Any] = {}
    for n, action in enumerate(actions):
        _look(env, looks is None or len(actions) - n <= looks)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
        success = success or bool(info["success"])
        if film:
            frames.append(env.render())
        done = bool(terminated or truncated)
        if done:
            break
    metrics = {name: float(value) for name, value in info.get("metrics", {}).items()}
    return Executed(tuple(observations), tuple(rewards), success, done, metrics, tuple(frames))


def _look(env: Any, images: bool) -> None:
    """Tell an environment that draws images, see `MappedObservations.look`, whether the next ones are wanted."""
    look = getattr(env, "look", None)
    if look is not None:
        look(images)


class LocalWorld:
    """Environments of this process; several take turns.

    Args:
        envs: gymnasium environments of one task, with `info["success"]`.
        looks: the last observations of a slice that are looked at, To of the policy: only these have images. None: all.
    """

    def __init__(self, envs: Sequence[Any], *, looks: int | None = None) -> None:
        self.envs = tuple(envs)
        self._looks = looks
        self._film = [False] * len(self.envs)

    def __len__(self) -> int:
        return len(self.envs)

    def reset(self, starts: Mapping[int, Start]) -> dict[int, Begun | Lost]:
        begun: dict[int, Begun | Lost] = {}
        for i, start in starts.items():
            _look(self.envs[i], True)
            observation, _ = self.envs[i].reset(seed=start.seed)
            self._film[i] = start.film
            begun[i] = Begun(observation, self.envs[i].render() if start.film else None)
        return begun

    def execute(self, actions: Mapping[int, np.ndarray]) -> dict[int, Executed | Lost]:
        return {i: _execute(self.envs[i], slice_, self._film[i], self._looks) for i, slice_ in actions.items()}

    def close(self) -> None:
        for env in self.envs:
            env.close()


class ProcessWorld:
    """One environment a process, so that they step at the same time; a message carries a whole slice.

    Args:
        make: module-level function that makes an environment, called as make(*args) in each process.
        args: of `make`, picklable.
        size: environments.
        looks: see `LocalWorld`.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, size: int, looks: int | None = None) -> None:
        self._make, self._args, self._looks = make, args, looks
        self.peers = [self._start(i) for i in range(size)]

    def _start(self, i: int) -> Peer:
        return Peer(_environment, self._make, self._args, self._looks, name=f"environment {i}")

    def __len__(self) -> int:
        return len(self.peers)

    def reset(self, starts: Mapping[int, Start]) -> dict[int, Begun | Lost]:
        return self._all("reset", starts)

    def execute(self, actions: Mapping[int, np.ndarray]) -> dict[int, Executed | Lost]:
        return self._all("execute", actions)

    def _all(self, what: str, requests: Mapping[int, Any]) -> dict[int, Any]:
        for i, request in requests.items():
            self.peers[i].ask((what, request))
        waiting = {self.peers[i].connection: i for i in requests}
        answers: dict[int, Any] = {}
        while waiting:
            # As they come, not in turn: unpickling one overlaps with the steps of the others.
            for connection in wait(list(waiting)):
                i = waiting.pop(connection)
                try:
                    answers[i] = self.peers[i].answer()
                except DeadPeerError as error:
                    self.peers[i].kill()
                    self.peers[i] = self._start(i)
                    answers[i] = Lost(str(error))
        return {i: answers[i] for i in requests}

    def close(self) -> None:
        for peer in self.peers:
            peer.kill()


def _environment(
    make: Callable[..., Any], args: tuple[Any, ...], looks: int | None
) -> Callable[[tuple[str, Any]], Any]:
    """In the process: an environment behind requests ("reset", Start) and ("execute", actions)."""
    world = LocalWorld([make(*args)], looks=looks)

    def answer(request: tuple[str, Any]) -> Any:
        what, argument = request
        return (world.reset if what == "reset" else world.execute)({0: argument})[0]

    return answer
