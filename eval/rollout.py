"""Receding-horizon rollouts: observe, sample a chunk of actions, execute the first of them, observe again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.clock import clock
from diffpolicy_spec.eval.episode import Episode, chunk_generator
from diffpolicy_spec.eval.errors import Retries
from diffpolicy_spec.eval.pacing import LOCKSTEP, Pace
from diffpolicy_spec.eval.records import ChunkRecord
from diffpolicy_spec.eval.subscribers import ChunkEvent, EpisodeStart, StepEvent, Subscriber
from diffpolicy_spec.eval.worlds import Begun, Executed, Lost, Start, World

__all__ = ["call_policy", "chunk_generator", "chunk_records", "run_episodes", "warm_up"]

History = Sequence[Mapping[str, np.ndarray]]


def _previous_plans(plans: Sequence[Tensor | None]) -> Tensor | None:
    """(B, T, Da) normalised, NaN rows where there is no plan yet; None where there is none at all."""
    known = next((p for p in plans if p is not None), None)
    if known is None:
        return None
    return torch.stack([torch.full_like(known, torch.nan) if p is None else p for p in plans])


def call_policy(
    policy: Any,
    sampler: Any,
    histories: Sequence[History],
    generators: Sequence[torch.Generator],
    previous_plans: Sequence[Tensor | None],
) -> tuple[Any, float]:
    """One timed policy call for B episodes.

    Args:
        policy: a `DiffusionPolicy`.
        sampler: a `BoundSampler` of it.
        histories: B of To observations {key: (d,)}, images (C, H, W) uint8, oldest first.
        generators: B sources of noise.
        previous_plans: B of (T, Da), normalised; None where there is none yet.

    Returns:
        (`PolicyOutput`, milliseconds from observations to actions).
    """
    observations = {
        key: np.stack([np.stack([seen[key] for seen in history]) for history in histories])
        for key in policy.config.obs_keys
    }
    previous = _previous_plans(previous_plans)
    start = clock(policy.device)
    output = policy.predict_action(observations, sampler=sampler, generator=list(generators), previous_plan=previous)
    return output, 1e3 * (clock(policy.device) - start)


def chunk_records(
    output: Any, latency_ms: float, places: Sequence[tuple[int, int]], call: int, **more: Any
) -> list[ChunkRecord]:
    """One record per chunk of a policy call.

    Args:
        output, latency_ms: from `call_policy`.
        places: B pairs (seed, index of the chunk in its episode).
        call: index of the call.
        **more: further fields, the same for all.
    """
    stats = output.sample.stats
    split = stats.time
    network, draft, verify = (1e3 * v for v in (split.network, split.draft, split.verify))
    columns = (stats.calls, stats.evaluations, stats.drafted, stats.accepted, stats.rejected, stats.wasted)
    calls, evaluations, drafted, accepted, rejected, wasted = (column.tolist() for column in columns)
    tested_at, accepted_at = stats.tested_at.tolist(), stats.accepted_at.tolist()
    return [
        ChunkRecord(
            seed=seed,
            chunk=chunk,
            call=call,
            batch=len(places),
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
            **more,
        )
        for i, (seed, chunk) in enumerate(places)
    ]


def warm_up(policy: Any, sampler: Any, world: World, seed: int, calls: int, batch: int = 1) -> None:
    """Make `calls` policy calls on the first observation of an episode and forget them.

    The first call of a process builds tables, fills caches and starts threads; the second one has a previous plan, as
    all but the first chunk of an episode have.
    """
    begun = world.reset({0: Start(seed)})[0] if calls else None
    if not isinstance(begun, Begun):
        return  # lost: the run itself tries again
    episodes = [Episode(seed, begun.observation, policy.config.n_obs_steps) for _ in range(batch)]
    for _ in range(calls):
        output, _ = _call(policy, sampler, episodes)
        for i, episode in enumerate(episodes):
            episode.planned(output.plan[i])


def _call(policy: Any, sampler: Any, episodes: Sequence[Episode]) -> tuple[Any, float]:
    return call_policy(
        policy, sampler, [e.history for e in episodes], [e.generator() for e in episodes], [e.plan for e in episodes]
    )


def run_episodes(
    policy: Any,
    sampler: Any,
    world: World,
    seeds: Sequence[int],
    *,
    subscribers: Sequence[Subscriber] = (),
    max_steps: int | None = None,
    film: Collection[int] = (),
    first_call: int = 0,
    pace: Pace = LOCKSTEP,
) -> None:
    """Run one episode per seed and tell the subscribers.

    The environments run in lockstep: one policy call makes a chunk for every episode under way, each executes it, and
    an environment whose episode has ended takes the next seed. An episode's initial state and noise are functions of
    its seed, so neither the order of the seeds nor the number of environments changes its law; with another batch size
    the last bits of the network may differ. As in diffusion_policy, the policy sees the last To observations (the
    first one repeated before the episode) and executes Ta actions of its plan, beginning with `policy.config.first`.

    An episode whose environment's process dies begins anew, at most three times.

    Args:
        policy: a `DiffusionPolicy`.
        sampler: a `BoundSampler` of it.
        world: environments of one task.
        seeds: of the episodes, each once.
        max_steps: end episodes after so many steps; default: the environment's own horizon.
        film: seeds of which the subscribers get frames.
        first_call: number of the first policy call in the records.
        pace: whether the world waits for the policy; where it does not, actions that come too late are dropped.

    Raises:
        EpisodeLostError: processes died over the same episode again and again.
    """
    waiting = deque(enumerate(seeds))
    order = {seed: i for i, seed in enumerate(seeds)}
    retries, call = Retries(), first_call
    running: dict[int, Episode] = {}  # by place, in the order in which they began

    def tell(method: str, event: Any) -> None:
        for subscriber in subscribers:
            getattr(subscriber, method)(event)

    def lost(seed: int, how: str) -> None:
        tell("on_episode_lost", seed)
        retries.died(seed, seed, how)
        waiting.appendleft((order[seed], seed))

    while waiting or running:
        free = [i for i in range(len(world)) if i not in running]
        starts = {i: waiting.popleft()[1] for i in free[: len(waiting)]}
        begun = world.reset({i: Start(seed, seed in film) for i, seed in starts.items()}) if starts else {}
        for i, answer in begun.items():
            seed = starts[i]
            if isinstance(answer, Lost):
                lost(seed, answer.how)
                continue
            running[i] = Episode(seed, answer.observation, policy.config.n_obs_steps)
            tell("on_episode_start", EpisodeStart(seed, order[seed], answer.observation, answer.frame))
        if not running:
            continue
        episodes = list(running.values())
        output, latency_ms = _call(policy, sampler, episodes)
        records = chunk_records(output, latency_ms, [(e.seed, e.chunks) for e in episodes], call)
        call += 1
        plans = output.action_pred.detach().cpu().numpy()
        slices: dict[int, np.ndarray] = {}
        for n, (i, episode) in enumerate(running.items()):
            chunk = plans[n, policy.config.first :]
            due = pace.due(episode, chunk, policy.config.n_action_steps, latency_ms)
            timing = {"waited": due.waited, "stale": due.stale, "held": due.held}
            record = replace(records[n], **timing, deadline_missed=due.deadline_missed)
            tell("on_chunk", ChunkEvent(record, due.actions, plans[n]))
            episode.planned(output.plan[n], chunk)
            left = None if max_steps is None else max_steps - episode.steps
            slices[i] = due.actions[:left]
        for i, executed in world.execute(slices).items():
            if isinstance(executed, Lost):
                lost(running.pop(i).seed, executed.how)
                continue
            _tell_steps(tell, running[i], slices[i], executed)
            running[i].executed(slices[i], executed, max_steps)
            if running[i].done:
                tell("on_episode_end", running.pop(i).record())


def _tell_steps(tell: Callable[[str, Any], None], episode: Episode, actions: np.ndarray, what: Executed) -> None:
    for n, (observation, reward) in enumerate(zip(what.observations, what.rewards, strict=True)):
        frame = what.frames[n] if what.frames else None
        tell("on_step", StepEvent(episode.seed, episode.steps + n, actions[n], observation, reward, frame))
