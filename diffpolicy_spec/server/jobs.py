"""Chunks that are asked for, how they end, and whose turn it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.server.observations import RequestError

if TYPE_CHECKING:
    from diffpolicy_spec.policies.engine import Finished

__all__ = ["OVER", "UNDER_WAY", "WAITING", "Job", "Outcome", "refusal_of", "turn_of"]

_LOG = logging.getLogger("diffpolicy_spec.server")

WAITING, UNDER_WAY, OVER = "waiting", "under way", "over"


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a job ended.

    Attributes:
        finished: the engine's result, None with an error.
        error: why there is no chunk.
        policy: name of the weights.
        queue_ms: from its arrival until it began; sampling_ms: until it was done.
    """

    finished: Finished | None
    error: RequestError | None
    policy: str
    queue_ms: float
    sampling_ms: float


@dataclass(eq=False)
class Job:
    """A chunk that is asked for.

    Attributes:
        obs, seed, committed, deadline: see `Engine.submit`.
        done: called once with the outcome, in the engine's thread, or where the job was taken back.
        client: whose it is.
        arrived, begun: s, time.monotonic.
        since: s, from when on it waits for its turn: earlier than it arrived where it took another one's place.
    """

    obs: Mapping[str, NDArray[Any]]
    done: Callable[[Outcome], None]
    seed: int | None = None
    committed: NDArray[np.float64] | None = None
    deadline: float | None = None
    client: str = ""
    arrived: float = field(default_factory=time.monotonic)
    begun: float = float("nan")
    since: float | None = None
    state: str = WAITING
    ticket: int = -1
    policy: str = ""


def turn_of(job: Job) -> tuple[float, float]:
    """Of one client's, or of clients that have equally many under way: who has to be first; else who came first."""
    return np.inf if job.deadline is None else job.deadline, job.arrived if job.since is None else job.since


def refusal_of(error: Exception) -> RequestError:
    """What a client is told of a chunk that went wrong."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ObservationError):
        return RequestError("bad_observation", str(error))
    if isinstance(error, ValueError):
        return RequestError("bad_request", str(error))
    # Where and how often a network's numbers run over is up to what clients send: a line is enough.
    _LOG.error("a chunk failed: %s", error, exc_info=None if isinstance(error, FloatingPointError) else error)
    return RequestError("internal", f"{type(error).__name__}: {error}")
