"""A control loop as it runs, in the rerun.io viewer, or in a file for it. Needs the extra `rerun`."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from diffpolicy_spec.control.background import Background
from diffpolicy_spec.control.events import ChunkArrived, Fault, Intervention, LoopStarted, LoopStopped, Tick
from diffpolicy_spec.control.protocols import Observation
from diffpolicy_spec.optional import require

__all__ = ["RerunView"]

TIMELINE = "loop"
APPLICATION = "diffpolicy_spec"


@dataclass(frozen=True, eq=False)
class _Seen:
    time: float
    observation: Observation


class RerunView(Background):
    """Shows a loop's events on the timeline "loop", s since the first of them.

    action: what was sent, a curve for each axis; plan/0 and plan/1: chunks as they come, in turn, at the times their
    actions are for; timing: jitter, busy time, chunk latency, age of the observation, ms; acceptance; log: faults,
    interventions, and where commands come from when that changes. `see` shows observations, cameras included.

    Args:
        save: a file (.rrd) that is written.
        connect: address of a viewer, as "rerun+http://127.0.0.1:9876/proxy". While it is not there, events are dropped
            and counted: rerun itself would keep them all.
        serve: port that viewers connect to, 0 for a free one, see `url`. It listens on all interfaces, and
            keeps the newest 256 MB for viewers that come later.
        spawn: a viewer is started on this machine.
        names: of the axes.
        policy_hz: see ControlConfig; None: control_hz.
        capacity: events kept until they are shown.

    Attributes:
        url: where viewers connect, with `serve`.

    Raises:
        ImportError: rerun is not installed.
        ValueError: not exactly one of save, connect, serve and spawn, or an address without a port.
    """

    def __init__(
        self,
        *,
        save: str | Path | None = None,
        connect: str | None = None,
        serve: int | None = None,
        spawn: bool = False,
        names: Sequence[str] = (),
        policy_hz: float | None = None,
        capacity: int = 20_000,
    ) -> None:
        if sum((save is not None, connect is not None, serve is not None, spawn)) != 1:
            raise ValueError("give exactly one of save, connect, serve and spawn")
        super().__init__(capacity)
        rr = self._rr = require("rerun", extra="rerun", needed_by="RerunView")
        self._names, self._policy_hz = tuple(names), policy_hz
        self._hz, self._zero, self._source, self._turn = math.nan, math.nan, "", 0
        self._labelled = False
        stream: Any = rr.RecordingStream(APPLICATION) if connect is None else None
        self.url: str | None = None
        self._viewer, self._there, self._looked = connect, True, 0.0
        if save is not None:
            Path(save).parent.mkdir(parents=True, exist_ok=True)
            stream.save(str(save), default_blueprint=self._layout())
        elif connect is not None:
            self._host = urlsplit(connect)
            if not self._host.hostname or not self._host.port:
                raise ValueError(f"connect must be an address as rerun+http://127.0.0.1:9876/proxy, got {connect!r}")
            self._there = False
        elif serve is not None:
            self.url = stream.serve_grpc(
                grpc_port=serve or _free_port(), default_blueprint=self._layout(), server_memory_limit="256MB"
            )
        else:
            stream.spawn(default_blueprint=self._layout())
        self._to = stream
        self._begin()

    def see(self, observation: Observation, time: float) -> None:
        """Show an observation; images are compressed. time: s on the loop's clock."""
        self._put(_Seen(time, observation))

    # In the thread.

    def work(self, event: Any) -> None:
        """Show an event."""
        self._look()
        if not self._there:
            self.dropped += 1
            return
        self._at(event.time)
        if isinstance(event, Tick):
            self._tick(event)
        elif isinstance(event, ChunkArrived):
            self._chunk(event)
        elif isinstance(event, Fault):
            over = f" (over after {event.lasted_s:.2f} s)" if event.recovered and event.lasted_s is not None else ""
            level = "INFO" if event.recovered else "ERROR"
            self._log(f"{event.kind}: {event.message}{over}", level)
        elif isinstance(event, Intervention):
            often = f" ({event.count} times)" if event.count > 1 else ""
            self._log(f"{event.kind}: {event.message}{often}", "WARN")
        elif isinstance(event, LoopStarted):
            self._hz = event.control_hz
            what = "" if event.info is None else f", {event.info.policy} {event.info.sampler}"
            self._log(f"start: {event.control_hz:g} Hz{what}", "INFO")
        elif isinstance(event, LoopStopped):
            self._log(f"stop: {event.reason}", "INFO")
        else:
            self._observation(event.observation)

    def finish(self) -> None:
        """See `Background`."""
        if self._to is not None:
            self._to.disconnect()

    def _look(self) -> None:
        """Whether the viewer is there, once a second."""
        now = monotonic()
        if self._viewer is None or now < self._looked + 1:
            return
        self._looked = now
        try:
            socket.create_connection((self._host.hostname, self._host.port), timeout=1.0).close()
        except OSError as error:
            self.problem = f"{self._viewer}: {error}"
            if self._there:
                self._there = False
                self._to.disconnect()
            return
        if not self._there:
            self._to = self._rr.RecordingStream(APPLICATION)
            self._to.connect_grpc(self._viewer, flush_timeout_sec=0.5, default_blueprint=self._layout())
            self._there, self._labelled = True, False

    def _at(self, time: float) -> None:
        if math.isnan(self._zero):
            self._zero = time
        self._to.set_time(TIMELINE, duration=time - self._zero)

    def _tick(self, event: Tick) -> None:
        if event.action is not None:
            self._label(len(event.action))
            self._numbers("action", event.action)
        self._numbers("timing/jitter_ms", event.jitter_ms)
        self._numbers("timing/busy_ms", event.busy_ms)
        self._numbers("timing/observation_age_ms", event.observation_age_ms)
        if event.source != self._source:
            self._log(f"commands: {self._source or 'nothing'} -> {event.source}", "INFO")
            self._source = event.source

    def _chunk(self, event: ChunkArrived) -> None:
        self._numbers("timing/latency_ms", event.latency_ms)
        tested = event.cost.accepted + event.cost.rejected
        if event.cost.accepted >= 0 and tested > 0:
            self._numbers("acceptance", event.cost.accepted / tested)
        if not event.exact:
            self._log(f"chunk {event.id} is inexact: finished to keep its deadline", "WARN")
        if not np.isfinite(event.actions).all():
            return
        dt = 1 / (self._policy_hz or self._hz)
        if math.isnan(dt):
            return
        begins = event.time - 1e-3 * event.observation_age_ms - self._zero
        rr, times = self._rr, begins + dt * np.arange(len(event.actions))
        self._to.send_columns(
            f"plan/{self._turn}",
            [rr.TimeColumn(TIMELINE, duration=times)],
            rr.Scalars.columns(scalars=event.actions.ravel()).partition([event.actions.shape[1]] * len(times)),
        )
        self._turn = 1 - self._turn

    def _observation(self, observation: Observation) -> None:
        for key, value in observation.values.items():
            array = np.asarray(value)
            if array.ndim == 1:
                self._numbers(f"observation/{key}", array)
            elif array.ndim == 3:
                image = np.moveaxis(array, 0, -1)
                if image.dtype != np.uint8:
                    image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
                image = image.squeeze(-1) if image.shape[-1] == 1 else image
                self._to.log(f"camera/{key}", self._rr.Image(image).compress())

    def _numbers(self, where: str, value: Any) -> None:
        if np.isfinite(value).all():
            self._to.log(where, self._rr.Scalars(value))

    def _log(self, text: str, level: str) -> None:
        self._to.log("log", self._rr.TextLog(text, level=level))

    def _label(self, axes: int) -> None:
        if not self._labelled:
            names = [*self._names, *(f"axis {i}" for i in range(len(self._names), axes))][:axes]
            for where in ("action", "plan/0", "plan/1"):
                self._to.log(where, self._rr.SeriesLines(names=names), static=True)
            self._labelled = True

    def _layout(self) -> Any:
        views = require("rerun.blueprint", extra="rerun", needed_by="RerunView")
        return views.Blueprint(
            views.Vertical(
                views.Horizontal(
                    views.TimeSeriesView(origin="action", name="commands"),
                    views.TimeSeriesView(origin="plan", name="chunks"),
                ),
                views.Horizontal(
                    views.TimeSeriesView(origin="timing", name="ms"),
                    views.TimeSeriesView(origin="acceptance", name="accepted drafts"),
                ),
                views.TextLogView(origin="log", name="faults and interventions"),
            )
        )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])
