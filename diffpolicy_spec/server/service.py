"""What all connections of a server share: the engine, the policy's description, counters, and whether it is ending."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import PlanCost, PolicyInfo
from diffpolicy_spec.server.codec import pack
from diffpolicy_spec.server.config import ServerConfig
from diffpolicy_spec.server.engine_thread import EngineThread
from diffpolicy_spec.server.jobs import Job, Outcome
from diffpolicy_spec.server.messages import SUBPROTOCOL, cost_of
from diffpolicy_spec.server.metrics import Metrics
from diffpolicy_spec.server.observations import ObsNames, RequestError

__all__ = ["Asked", "Served", "Service", "message_bytes"]


@dataclass(frozen=True, eq=False)
class Served:
    """A chunk for a client.

    Attributes:
        actions: (P, Da), all usable ones.
        exact, cost, policy: see `control.Plan`; shared: chains in its network calls, on average.
        timing: server_timing of the answer, ms.
    """

    actions: NDArray[np.float64]
    exact: bool
    cost: PlanCost
    shared: float
    policy: str
    timing: dict[str, float]

    def answer(self) -> dict[str, Any]:
        """As a message's fields."""
        return {
            "actions": self.actions, "exact": self.exact, "cost": cost_of(self.cost, self.shared),
            "policy": self.policy, "server_timing": self.timing,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Asked:
    """A chunk that is asked for. outcome: set when it is over, whatever became of it."""

    job: Job
    outcome: asyncio.Future[Outcome]


class Service:
    """Shared by the connections of a server; of its event loop alone.

    Args:
        engine: running.
        version: of this package, for clients.

    Raises:
        ValueError: `config.obs_map` does not fit the policy.
    """

    def __init__(self, engine: EngineThread, config: ServerConfig, metrics: Metrics, version: str) -> None:
        self.engine, self.config, self.metrics = engine, config, metrics
        self.names = ObsNames(engine.info, config.obs_map)
        self.draining = False
        self._version = version
        self.described()

    @property
    def info(self) -> PolicyInfo:
        """Of the policy that is used for new requests."""
        return self.engine.info

    def described(self) -> None:
        """Count which policy is in use."""
        self.metrics.policy.clear()
        self.metrics.policy.labels(self.info.policy, self.info.sampler).set(1)

    def metadata(self, protocol: str) -> bytes:
        """What a connection is told first."""
        config = self.config
        told: dict[str, Any] = {
            "type": "policy", "protocol": protocol, "server": "dps-serve", "version": self._version,
            "info": asdict(self.info), "max_message_bytes": message_bytes(self.info, config),
        }  # fmt: skip
        if protocol != SUBPROTOCOL:
            told |= {"history": config.history, "actions_returned": config.actions_returned}
        return pack(told)

    def ask(
        self,
        obs: Mapping[str, NDArray[Any]],
        *,
        client: str,
        arrived: float,
        seed: int | None = None,
        committed: NDArray[np.float64] | None = None,
        deadline_ms: float | None = None,
        since: float | None = None,
    ) -> Asked:
        """Ask for a chunk; client, arrived, since: see `Job`.

        Raises:
            RequestError: there will be none.
        """
        if self.draining:
            raise RequestError("draining", "the server is going down")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        def done(outcome: Outcome) -> None:
            try:
                loop.call_soon_threadsafe(settle, outcome)
            except RuntimeError:  # the server ended meanwhile
                return

        wait_ms = self.config.deadline_ms if deadline_ms is None else deadline_ms
        deadline = None if wait_ms is None else arrived + wait_ms / 1e3
        job = Job(obs, done, seed, committed, deadline, client, arrived, since=since)
        self.metrics.seconds.labels("read").observe(time.monotonic() - arrived)
        self.engine.submit(job)
        return Asked(job, future)

    def served(self, outcome: Outcome) -> Served:
        """The chunk of an outcome; counts it.

        Raises:
            RequestError: there is none.
        """
        finished, metrics = outcome.finished, self.metrics
        if finished is None:
            raise outcome.error or RequestError("internal", "there is no chunk")
        cost = PlanCost(
            outcome.queue_ms + outcome.sampling_ms, finished.calls, finished.evaluations, finished.accepted,
            finished.rejected,
        )  # fmt: skip
        shared = float(finished.shared)
        metrics.seconds.labels("queue").observe(outcome.queue_ms / 1e3)
        metrics.seconds.labels("sampling").observe(outcome.sampling_ms / 1e3)
        for counter, value in ((metrics.shared, shared), (metrics.calls, cost.calls)):
            if math.isfinite(value):
                counter.observe(value)
        for counter, value in (
            (metrics.evaluations, cost.evaluations), (metrics.accepted, cost.accepted),
            (metrics.rejected, cost.rejected),
        ):  # fmt: skip
            counter.inc(max(0, value))
        timing = {"infer_ms": outcome.queue_ms + outcome.sampling_ms, "queue_ms": outcome.queue_ms}
        actions = np.asarray(finished.action_pred, np.float64)[self.info.first :]
        return Served(actions, bool(finished.exact), cost, shared, outcome.policy, timing)

    def withdraw(self, asked: Asked, kind: str, message: str, *, begun: bool = True) -> bool:
        """Take a request back; whether it was still there."""
        return self.engine.withdraw(asked.job, RequestError(kind, message), begun=begun)

    def metrics_text(self) -> str:
        """Everything that is counted, as Prometheus reads it."""
        self.metrics.waiting.set(self.engine.waiting)
        self.metrics.under_way.set(self.engine.under_way)
        return self.metrics.text()

    def healthy(self) -> str | None:
        """What is wrong with the server, or None."""
        stalled = self.engine.stalled_s()
        if stalled > _MOST_STALLED_S:
            return "the sampler is dead" if math.isinf(stalled) else f"the sampler has stood still for {stalled:.0f} s"
        return f"the sampler failed {self.engine.failures} times in a row" if self.engine.failures >= 3 else None


_MOST_STALLED_S = 60.0


def message_bytes(info: PolicyInfo, config: ServerConfig) -> int:
    """The largest message a client may send."""
    if config.limits.max_message_bytes is not None:
        return config.limits.max_message_bytes
    numbers = 8 * sum(info.obs_dims.values()) + 4 * sum(math.prod(shape) for shape in info.image_shapes.values())
    return 2 * info.n_obs_steps * numbers + 2**16
