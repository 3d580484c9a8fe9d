"""An episode under way: what its policy sees next, and the record that is left of it."""

from __future__ import annotations

import hashlib
import time
from collections import deque

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.eval.records import EpisodeRecord
from diffpolicy_spec.eval.worlds import Executed
from diffpolicy_spec.seeds import hashed_generator

__all__ = ["Episode", "chunk_generator"]


def chunk_generator(seed: int, chunk: int) -> torch.Generator:
    """The source of all noise of chunk number `chunk` of the episode with this seed.

    Both are hashed: chunks of neighbouring seeds are independent, and what an episode draws does not depend on which
    episodes ran before it or beside it.
    """
    return hashed_generator(seed, chunk)


class Episode:
    """An episode under way.

    Args:
        seed: of the environment's reset and of the policy's noise.
        observation: the first one.
        n_obs_steps: To.

    Attributes:
        history: the last To observations; before the episode there is the first one, repeated.
        plan: (T, Da) the plan before, normalised; None at first.
        chunk: (P, Da) that plan's actions from its observation on, in their own units; None at first.
        since: steps since that observation.
        last: (Da,) the action executed last; None at first.
        chunks: asked of the policy so far.
        steps: taken so far.
        success, max_reward, metrics: so far.
        done: whether it is over.
    """

    def __init__(self, seed: int, observation: dict[str, np.ndarray], n_obs_steps: int) -> None:
        self.seed = seed
        self.history = deque([observation] * n_obs_steps, maxlen=n_obs_steps)
        self.plan: Tensor | None = None
        self.chunk: np.ndarray | None = None
        self.since = 0
        self.last: np.ndarray | None = None
        self.chunks = self.steps = 0
        self.success = self.done = False
        self.max_reward = -np.inf
        self.metrics: dict[str, float] = {}
        self._actions = hashlib.sha256()
        self._began = time.perf_counter()

    def generator(self) -> torch.Generator:
        """The source of the next chunk's noise."""
        return chunk_generator(self.seed, self.chunks)

    def planned(self, plan: Tensor, chunk: np.ndarray | None = None) -> None:
        """Take on a plan (T, Da), normalised, and its actions (P, Da) from the newest observation on."""
        self.plan, self.chunk, self.since, self.chunks = plan, chunk, 0, self.chunks + 1

    def executed(self, actions: np.ndarray, what: Executed, max_steps: int | None) -> None:
        """Take on what came of the first of the actions (n, Da)."""
        taken = len(what.rewards)
        self.history.extend(what.observations)
        self.max_reward = max(self.max_reward, *what.rewards)
        self._actions.update(np.ascontiguousarray(actions[:taken], np.float64).tobytes())
        self.steps, self.since, self.last = self.steps + taken, self.since + taken, actions[taken - 1]
        self.success = self.success or what.success
        self.metrics = dict(what.metrics)
        self.done = what.done or (max_steps is not None and self.steps >= max_steps)

    def record(self) -> EpisodeRecord:
        """What is kept of it."""
        return EpisodeRecord(
            seed=self.seed,
            success=self.success,
            max_reward=self.max_reward,
            steps=self.steps,
            chunks=self.chunks,
            metrics=self.metrics,
            actions_sha=self._actions.hexdigest()[:16],
            wall_s=time.perf_counter() - self._began,
        )
