"""What is kept of every episode and of every action chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ChunkRecord", "EpisodeRecord"]


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode.

    Attributes:
        seed: of the environment's reset and of the policy's noise.
        success: whether the task was solved within the horizon.
        max_reward: the largest reward of a step (1.0 on success in robomimic's tasks).
        steps: environment steps taken.
        chunks: action chunks that were asked of the policy.
        metrics: further results by name, as the environment's last info["metrics"] has them (Kitchen's p_1 to p_7).
        actions_sha: the first 16 hex digits of the SHA-256 of all executed actions, float64: equal for equal episodes.
        wall_s: seconds the episode took.
    """

    seed: int
    success: bool
    max_reward: float
    steps: int
    chunks: int
    metrics: dict[str, float] = field(default_factory=dict)
    actions_sha: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True)
class ChunkRecord:
    """One action chunk of one episode. K is the number of denoising steps of the sampler.

    With several environments in lockstep one policy call makes a chunk for each: their records share `call`, and the
    times are the whole call's.

    Attributes:
        seed: of the episode.
        chunk: index of the chunk in its episode.
        call: number of the policy call, unique in a store.
        batch: chunks made by that call.
        latency_ms: wall-clock of the policy call, from observation history to actions.
        network_ms: of that, inside the denoising network.
        draft_ms: of that, drafting.
        verify_ms: of that, acceptance tests and corrections.
        other_ms: of that, the rest: encoding the observation, drawing noise, bookkeeping, unnormalising.
        sampler_ms: of latency_ms, inside the sampler (network, draft, verify and its bookkeeping).
        calls: sequential network calls.
        evaluations: rows evaluated by the network.
        drafted: drafted steps sent to verification.
        accepted: drafted steps committed as drafted.
        rejected: drafted steps that were tested and failed.
        wasted: rows evaluated for drafted states that were then dropped.
        tested_at: (K,) tests by denoising step.
        accepted_at: (K,) tests passed by denoising step.
        waited: control steps that passed while the call was made (real-time mode; 0 where the world waits).
        stale: actions of the chunk that were dropped because their time had passed.
        held: of the steps waited, those in which there was no action left and the robot held its last one.
        deadline_missed: whether the chunk came after the actions before it were used up.
    """

    seed: int
    chunk: int
    call: int
    batch: int
    latency_ms: float
    network_ms: float
    draft_ms: float
    verify_ms: float
    other_ms: float
    sampler_ms: float
    calls: int
    evaluations: int
    drafted: int
    accepted: int
    rejected: int
    wasted: int
    tested_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    waited: int = 0
    stale: int = 0
    held: int = 0
    deadline_missed: bool = False
