"""What a server counts, as Prometheus text."""

from __future__ import annotations

from typing import Any

from diffpolicy_spec.optional import require

__all__ = ["Metrics"]

# s; from a chunk of a small network on a GPU to one of a large on a CPU.
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CHAINS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)
_CALLS = (2, 4, 6, 8, 10, 15, 20, 35, 50, 100)


class Metrics:
    """Counters of one server, in a registry of their own: several servers may run in a process."""

    def __init__(self) -> None:
        client = require("prometheus_client", extra="server", needed_by="dps-serve")
        self._text = client.exposition.generate_latest
        self._registry = client.CollectorRegistry()

        def make(kind: Any, name: str, told: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"dps_{name}", told, labels, registry=self._registry, **more)

        counter, gauge, histogram = client.Counter, client.Gauge, client.Histogram
        self.requests = make(counter, "requests", "chunks asked for", ("protocol",))
        self.chunks = make(counter, "chunks", "chunks answered", ("protocol", "exact"))
        self.errors = make(counter, "errors", "requests and messages without a chunk", ("kind",))
        self.seconds = make(
            histogram, "stage_seconds", "of a chunk: read, queue, sampling, answer, total", ("stage",), buckets=_BUCKETS
        )
        self.waiting = make(gauge, "waiting", "requests that wait for the policy")
        self.under_way = make(gauge, "under_way", "chunks under way")
        self.shared = make(
            histogram, "shared_chains", "chains in a chunk's network calls, on average", buckets=_CHAINS
        )
        self.calls = make(histogram, "network_calls", "sequential network calls of a chunk", buckets=_CALLS)
        self.evaluations = make(counter, "evaluations", "rows evaluated by the network")
        self.accepted = make(counter, "accepted_steps", "drafted steps that were accepted")
        self.rejected = make(counter, "rejected_steps", "drafted steps that were rejected")
        self.connections = make(gauge, "connections", "open connections", ("protocol",))
        self.opened = make(counter, "connections_opened", "connections that were opened", ("protocol",))
        self.refused = make(counter, "connections_refused", "handshakes that were refused", ("reason",))
        self.closed = make(counter, "connections_closed_by_server", "closed for what they did", ("reason",))
        self.auth_failures = make(counter, "auth_failures", "handshakes without a right token")
        self.swaps = make(counter, "policy_swaps", "checkpoints that were loaded, or refused", ("outcome",))
        self.engine_failures = make(counter, "engine_failures", "times the sampler or its network failed")
        self.policy = make(gauge, "policy_info", "1, for the policy in use", ("policy", "sampler"))

    def text(self) -> str:
        """All of it."""
        return self._text(self._registry).decode()
