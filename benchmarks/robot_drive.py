"""What drives the simulated robot in `robot.py`: the control loop, and the plain evaluation beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from robot_topics import described

from diffpolicy_spec.control import ControlConfig, SafetyConfig
from diffpolicy_spec.control.loop import ControlLoop
from diffpolicy_spec.control.protocols import Planner
from diffpolicy_spec.control.records import Recorder, Summary
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.realtime import LiveSim

__all__ = ["LIFT", "SAFETY", "Driven", "by_loop", "control_config", "plain"]

LIFT = EnvConfig("lift", "absolute_rot6d")
# m and m/s for the hand, the table is at z = 0.8; the rows of the rotation and the gripper are free.
SAFETY = SafetyConfig(
    kind=["position"] * 3 + ["free"] * 7,
    low=[-0.6, -0.6, 0.7] + [-2.0] * 6 + [-1.0],
    high=[0.6, 0.6, 1.6] + [2.0] * 6 + [1.0],
    velocity=[3.0] * 3 + [np.inf] * 7,
    max_observation_age_ms=1000,
    watchdog_ms=500,
)


def control_config(control_hz: float = 20.0, **changes: Any) -> ControlConfig:
    """Of every way: the policy's own receding horizon.

    A command is sent 0.7 periods before its time: the simulator executes at t what is meant for within half a period
    of it. A chunk has until the one before has no action left, 7 periods after it was asked for.
    """
    settings: dict[str, Any] = {"lead_ms": 700 / control_hz, "deadline_ms": 7000 / control_hz, "seed": 0}
    return ControlConfig(control_hz=control_hz, **settings | changes)


@dataclass
class Driven:
    """What came of some episodes.

    Attributes:
        episodes: as `robot_topics.described` gives them.
        loop: what the control loop's recorder says; None where there was none.
        latency_ms: of chunks, where there was no loop.
    """

    episodes: list[dict[str, Any]] = field(default_factory=list)
    loop: Summary | None = None
    latency_ms: list[float] = field(default_factory=list)

    @property
    def successes(self) -> int:
        """How many."""
        return sum(bool(e["success"]) for e in self.episodes)


def plain(seeds: Sequence[int], policy: str = "lift") -> Driven:
    """The plain evaluation: the world waits."""
    import torch

    from diffpolicy_spec import load_policy
    from diffpolicy_spec.eval.rollout import run_episodes, warm_up
    from diffpolicy_spec.eval.subscribers import Recorder
    from diffpolicy_spec.eval.worlds import LocalWorld

    torch.set_num_threads(1)
    loaded = load_policy(policy)
    sampler, world, recorder = loaded.bind(), LocalWorld([LIFT.make()]), Recorder()
    warm_up(loaded, sampler, world, seeds[0], calls=2)
    run_episodes(loaded, sampler, world, list(seeds), subscribers=[recorder])
    world.close()
    episodes = [{"seed": e.seed, "success": e.success, "steps": e.steps} for e in recorder.episodes]
    return Driven(episodes, latency_ms=[c.latency_ms for c in recorder.chunks])


def by_loop(
    sim: LiveSim,
    planner: Planner,
    seeds: Sequence[int],
    config: ControlConfig,
    safety: SafetyConfig = SAFETY,
    timeout: float = 120.0,
) -> Driven:
    """Episodes driven by a control loop in this process; the planner may be anything, and is left open.

    Raises:
        TimeoutError: an episode does not end.
    """
    into, recorder = Driven(), Recorder()
    for seed in seeds:
        sim.reset(seed)
        loop = ControlLoop(sim.robot, planner, config, safety, [recorder])
        loop.start()
        try:
            result = described(sim.result(timeout=timeout))
        finally:
            loop.stop("the episode is over")
            loop.join()
        if result is None:
            raise TimeoutError(f"episode {seed} has not ended within {timeout:.0f} s:\n{recorder.summary().text()}")
        into.episodes.append(result)
    into.loop = recorder.summary()
    return into
