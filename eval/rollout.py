"""Receding-horizon rollouts: observe, sample a chunk of actions, execute the first of them, observe again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.eval.subscribers import ChunkEvent, EpisodeStart, StepEvent, Subscriber
from diffpolicy_spec.seeds import hashed_generator

__all__ = ["chunk_generator", "run_episodes", "warm_up"]


def chunk_generator(seed: int, chunk: int) -> torch.Generator:
    """The source of all noise of chunk number `chunk` of the episode with this seed.

    Both are hashed: chunks of neighbouring seeds are independent, and what an episode draws does not depend on which
    episodes ran before it or beside it.
    """
    return hashed_generator(seed, chunk)


@dataclass
class _Episode:
    """An episode under way in one environment."""

    seed: int
    order: int
    env: Any
    history: deque[dict[str, np.ndarray]]
    plan: Tensor | None = None
    chunks: int = 0
    steps: int = 0
    max_reward: float = -np.inf
    success: bool = False
    done: bool = False
    subscribers: Sequence[Subscriber] = field(default=(), repr=False)

    @classmethod
    def start(
        cls, env: Any, seed: int, order: int, n_obs_steps: int, subscribers: Sequence[Subscriber] = ()
    ) -> _Episode:
        observation, _ = env.reset(seed=seed)
        # The history before the episode is the first observation, repeated.
        history = deque([observation] * n_obs_steps, maxlen=n_obs_steps)
        episode = cls(seed, order, env, history, subscribers=subscribers)
        for subscriber in subscribers:
            subscriber.on_episode_start(EpisodeStart(seed, order, env, observation))
        return episode

    def execute(self, actions: np.ndarray, max_steps: int | None) -> None:
        """Step through actions (Ta, Da) until they are used up or the episode ends."""
        for action in actions:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.history.append(observation)
            self.max_reward = max(self.max_reward, float(reward))
            self.success = self.success or bool(info["success"])
            for subscriber in self.subscribers:
                subscriber.on_step(StepEvent(self.seed, self.steps, action, observation, float(reward), self.env))
            self.steps += 1
            self.done = bool(terminated or truncated) or (max_steps is not None and self.steps >= max_steps)
            if self.done:
                break
        if self.done:
            record = EpisodeRecord(self.seed, self.success, self.max_reward, self.steps, self.chunks)
            for subscriber in self.subscribers:
                subscriber.on_episode_end(record)


def _observations(episodes: Sequence[_Episode], keys: Sequence[str]) -> dict[str, np.ndarray]:
    """{key: (B, To, d)} over the episodes' histories."""
    return {
        key: np.stack([np.stack([observation[key] for observation in e.history]) for e in episodes]) for key in keys
    }


def _previous_plans(episodes: Sequence[_Episode]) -> Tensor | None:
    """(B, T, Da) normalised, NaN rows for episodes that have no plan yet; None where none has."""
    plans = [e.plan for e in episodes]
    known = next((p for p in plans if p is not None), None)
    if known is None:
        return None
    return torch.stack([torch.full_like(known, torch.nan) if p is None else p for p in plans])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _call(policy: Any, sampler: Any, episodes: Sequence[_Episode]) -> tuple[Any, float]:
    """One timed policy call for all episodes: (PolicyOutput, milliseconds)."""
    observations = _observations(episodes, policy.config.obs_keys)
    generators = [chunk_generator(e.seed, e.chunks) for e in episodes]
    previous = _previous_plans(episodes)
    _synchronize(policy.device)
    start = time.perf_counter()
    output = policy.predict_action(observations, sampler=sampler, generator=generators, previous_plan=previous)
    _synchronize(policy.device)
    return output, 1e3 * (time.perf_counter() - start)


def _records(output: Any, latency_ms: float, episodes: Sequence[_Episode], call: int) -> list[ChunkRecord]:
    stats = output.sample.stats
    split = stats.time
    network, draft, verify = (1e3 * v for v in (split.network, split.draft, split.verify))
    columns = (stats.calls, stats.evaluations, stats.drafted, stats.accepted, stats.rejected, stats.wasted)
    calls, evaluations, drafted, accepted, rejected, wasted = (column.tolist() for column in columns)
    tested_at, accepted_at = stats.tested_at.tolist(), stats.accepted_at.tolist()
    return [
        ChunkRecord(
            seed=e.seed,
            chunk=e.chunks,
            call=call,
            batch=len(episodes),
            latency_ms=latency_ms,
            network_ms=network,
            draft_ms=draft,
            verify_ms=verify,
            other_ms=latency_ms - network - draft - verify,
            sampler_ms=1e3 * split.total,
            calls=calls[i],
            evaluations=evaluations[i],
            drafted=drafted[i],
            accepted=accepted[i],
            rejected=rejected[i],
            wasted=wasted[i],
            tested_at=tuple(tested_at[i]),
            accepted_at=tuple(accepted_at[i]),
        )
        for i, e in enumerate(episodes)
    ]


def warm_up(policy: Any, sampler: Any, env: Any, seed: int, calls: int, batch: int = 1) -> None:
    """Make `calls` policy calls on the first observation of an episode and forget them.

    The first call of a process builds tables, fills caches and starts threads; the second one has a previous plan, as
    all but the first chunk of an episode have.
    """
    first = _Episode.start(env, seed, 0, policy.config.n_obs_steps)
    episodes = [_Episode(seed, 0, env, first.history) for _ in range(batch)]
    for _ in range(calls):
        output, _ = _call(policy, sampler, episodes)
        for i, episode in enumerate(episodes):
            episode.plan, episode.chunks = output.plan[i], episode.chunks + 1


def run_episodes(
    policy: Any,
    sampler: Any,
    envs: Sequence[Any],
    seeds: Sequence[int],
    *,
    subscribers: Sequence[Subscriber] = (),
    max_steps: int | None = None,
) -> None:
    """Run one episode per seed and tell the subscribers.

    The environments run in lockstep: one policy call makes a chunk for every episode under way, each executes it, and
    an environment whose episode has ended takes the next seed. An episode's initial state and noise are functions of
    its seed, so neither the order of the seeds nor the number of environments changes its law; with another batch size
    the last bits of the network may differ.

    Args:
        policy: a `DiffusionPolicy`.
        sampler: a `BoundSampler` of it.
        envs: gymnasium environments of one task; `info["success"]` says whether a step solved it.
        seeds: of the episodes.
        max_steps: end episodes after so many steps; default: the environment's own horizon.
    """
    waiting = deque(enumerate(seeds))
    free, call = list(envs), 0
    running: list[_Episode] = []
    while waiting or running:
        while waiting and free:
            order, seed = waiting.popleft()
            running.append(_Episode.start(free.pop(0), seed, order, policy.config.n_obs_steps, subscribers))
        output, latency_ms = _call(policy, sampler, running)
        actions = output.action.detach().cpu().numpy()
        plans = output.action_pred.detach().cpu().numpy()
        for i, (episode, record) in enumerate(zip(running, _records(output, latency_ms, running, call), strict=True)):
            for subscriber in subscribers:
                subscriber.on_chunk(ChunkEvent(record, actions[i], plans[i]))
            episode.plan, episode.chunks = output.plan[i], episode.chunks + 1
            episode.execute(actions[i], max_steps)
        call += 1
        free += [episode.env for episode in running if episode.done]
        running = [episode for episode in running if not episode.done]
