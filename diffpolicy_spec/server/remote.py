"""A policy server as a control loop's planner: a thread that keeps the connection, and asks without anyone waiting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffpolicy_spec.control.protocols import Failure, Plan, PlanRequest, PolicyInfo
from diffpolicy_spec.optional import require
from diffpolicy_spec.server.client import connection_options, refusal_of
from diffpolicy_spec.server.codec import CodecError, pack
from diffpolicy_spec.server.errors import Unauthorized
from diffpolicy_spec.server.messages import Chunk, Metadata, Refusal, infer_request, read_answer, shapes_of

__all__ = ["RemotePlanner"]

_FAULT_OF = {
    "bad_message": "bad_message", "bad_request": "bad_message", "bad_observation": "observation_invalid",
    "superseded": "late_inference",
}  # fmt: skip
"""What a server's refusal is to a loop; any other is a server_error."""

_OF_CONNECTION = ("server_unreachable", "connection_lost", "unauthorized", "policy_mismatch")
_QUIET = logging.getLogger("diffpolicy_spec.server.remote.websockets")
_QUIET.setLevel(logging.CRITICAL)  # what goes wrong with the connection is told as a Failure


@dataclass(eq=False)
class _Asked:
    request: PlanRequest
    timeout: asyncio.TimerHandle | None = None


class RemotePlanner:
    """Chunks from a `dps-serve` somewhere; a `control.Planner`.

    It connects, and connects again: after 0.1 s, then twice as long each time, up to `backoff`. A connection that went
    silent is noticed by pings, after at most ping_interval + ping_timeout. What was asked for on a connection that is
    lost is reported lost at once; so is what is asked for while there is none.

    Args:
        url: ws://host:port, or wss:// for TLS.
        token: None: that of DPS_TOKEN, if there is one.
        tls_ca: PEM file of further certificates to trust.
        connect_timeout: s.
        request_timeout: s; a request without an answer by then is reported lost.
        ping_interval, ping_timeout: s.
        backoff: s, (least, most) before the next attempt.
        retry_unauthorized: s, before the token is tried again after the server did not take it.

    Raises:
        ValueError: no such URL.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        connect_timeout: float = 3.0,
        request_timeout: float = 5.0,
        ping_interval: float = 1.0,
        ping_timeout: float = 2.0,
        backoff: tuple[float, float] = (0.1, 3.0),
        retry_unauthorized: float = 10.0,
    ) -> None:
        self.url = url
        self._options = connection_options(url, token, tls_ca) | {
            "open_timeout": connect_timeout, "ping_interval": ping_interval, "ping_timeout": ping_timeout,
            "logger": _QUIET,
        }  # fmt: skip
        self._connect = require("websockets.asyncio.client", extra="client").connect
        self._exceptions = require("websockets.exceptions", extra="client")
        self._connect_timeout, self._request_timeout = connect_timeout, request_timeout
        self._backoff, self._retry_unauthorized = backoff, retry_unauthorized
        self._came: deque[Plan | Failure] = deque()
        self._info: PolicyInfo | None = None
        self._ready = False
        self._faults: set[str] = set()  # that are told and not over; of the thread alone
        self._why = ("server_unreachable", f"{url} is not connected yet")
        self._asked: dict[int, _Asked] = {}
        self._to_send: asyncio.Queue[int] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to connect."""
        if self._thread is None:
            self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="planner", daemon=True)
            self._thread.start()
            self._started.wait()

    @property
    def info(self) -> PolicyInfo | None:
        """Of the server's policy; None until it was connected for the first time."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether it is connected."""
        return self._ready

    def submit(self, request: PlanRequest) -> None:
        """Ask for a chunk; it, or a Failure, comes by `poll`."""
        loop = self._loop
        if not self._closing and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed this very moment
                loop.call_soon_threadsafe(self._ask, request)
                return
        self._came.append(Failure("server_unreachable", "the planner is not started, or closed", request.id))

    def poll(self) -> Sequence[Plan | Failure]:
        """What has come since."""
        found = []
        while self._came:
            found.append(self._came.popleft())
        return found

    def close(self) -> None:
        """Disconnect, and end the thread; may be called twice."""
        self._closing = True
        if self._thread is not None and self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(2.0)
        self._ready = False

    # From here on everything runs in the thread.

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        keeping = asyncio.create_task(self._keep_connected())
        await self._stop.wait()
        keeping.cancel()
        await asyncio.wait([keeping], timeout=1.0)
        self._lose_all("server_unreachable", "the planner is closed")

    async def _keep_connected(self) -> None:
        wait = self._backoff[0]
        while True:
            try:
                async with self._connect(self.url, **self._options) as socket:
                    await self._first(await asyncio.wait_for(socket.recv(), self._connect_timeout))
                    wait = self._backoff[0]
                    await self._converse(socket)
            except (self._exceptions.ConnectionClosed, TimeoutError) as error:
                if self._ready:
                    self._gone("connection_lost", f"{self.url}: the connection is lost ({error}); connecting again")
                else:
                    self._gone("server_unreachable", f"{self.url}: {error or 'no answer in time'}; trying again")
            except (self._exceptions.WebSocketException, OSError) as error:
                refusal = refusal_of(self.url, error)
                kind = "unauthorized" if isinstance(refusal, Unauthorized) else "server_unreachable"
                self._gone(kind, f"{refusal}; trying again")
            except CodecError as error:
                self._gone("bad_message", f"{self.url}: {error}; connecting again")
            except _Mismatch as error:
                self._gone("policy_mismatch", str(error))
            except Exception as error:  # whatever it was: a robot's planner goes on trying
                self._gone("server_unreachable", f"{self.url}: {type(error).__name__}: {error}; trying again")
            slow = self._why[0] in ("unauthorized", "policy_mismatch")
            # Not all robots at once, when a server comes back.
            await asyncio.sleep((self._retry_unauthorized if slow else wait) * random.uniform(0.7, 1.0))
            wait = min(2 * wait, self._backoff[1])

    async def _first(self, data: bytes | str) -> None:
        answer = read_answer(data)
        if not isinstance(answer, Metadata):
            raise CodecError("the server did not say what its policy is: another kind of server")
        self._met(answer.info)
        self._ready = True
        for kind in (*_OF_CONNECTION, "bad_message"):
            self._over(kind, f"{self.url} is connected")

    def _met(self, info: PolicyInfo) -> None:
        """The server's policy, at first or again."""
        before = self._info
        if before is not None and shapes_of(before) != shapes_of(info):
            raise _Mismatch(
                f"{self.url} now serves '{info.policy}', whose shapes are not those of '{before.policy}', which this "
                "robot runs: serve the other one, or start the robot's program again"
            )
        self._info = info
        if before is not None and before.policy != info.policy:
            self._tell(Failure("policy_swapped", f"'{before.policy}' -> '{info.policy}'"))

    async def _converse(self, socket: Any) -> None:
        sending = asyncio.create_task(self._send(socket))
        try:
            async for data in socket:
                self._read(data)
            raise self._exceptions.ConnectionClosedOK(None, None)  # the server said goodbye
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sending

    async def _send(self, socket: Any) -> None:
        while True:
            asked = self._asked.get(await self._to_send.get())
            if asked is None:  # its time was up before it could be sent
                continue
            request, deadline = asked.request, None
            if request.deadline is not None:
                # What the way there and back takes is not the server's.
                deadline = max(0.0, 1e3 * (request.deadline - time.monotonic() - socket.latency))
            try:
                data = pack(
                    infer_request(
                        request.id, request.obs, deadline_ms=deadline, committed=request.committed, seed=request.seed
                    )
                )
            except CodecError as error:
                self._lose(request.id, "observation_invalid", f"the request cannot be sent: {error}")
                continue
            await socket.send(data)

    def _ask(self, request: PlanRequest) -> None:
        if not self._ready:
            self._tell(Failure(*self._why, id=request.id))
            return
        late = self._loop.call_later(self._request_timeout, self._late, request.id) if self._loop else None
        self._asked[request.id] = _Asked(request, late)
        self._to_send.put_nowait(request.id)

    def _read(self, data: bytes | str) -> None:
        answer = read_answer(data)
        if isinstance(answer, Metadata):
            self._met(answer.info)
        elif isinstance(answer, Chunk):
            if self._settled(answer.plan.id):
                self._tell(answer.plan)
                for kind in ("server_error", "bad_message", "late_inference"):
                    self._over(kind, "a chunk came")
        elif isinstance(answer, Refusal):
            kind = _FAULT_OF.get(answer.kind, "server_error")
            message = f"{self.url}: {answer.kind}: {answer.message}"
            if answer.id is None:
                self._begin(kind, message)
            else:
                self._lose(answer.id, kind, message)

    def _late(self, id: int) -> None:
        self._lose(id, "server_error", f"{self.url}: no answer within {self._request_timeout} s")

    def _settled(self, id: int) -> bool:
        """Take it off the list; False: it was not on it."""
        asked = self._asked.pop(id, None)
        if asked is not None and asked.timeout is not None:
            asked.timeout.cancel()
        return asked is not None

    def _lose(self, id: int, kind: str, message: str) -> None:
        if self._settled(id):
            self._begin(kind, message, id)

    def _lose_all(self, kind: str, message: str) -> None:
        for id in list(self._asked):
            self._lose(id, kind, message)
        while not self._to_send.empty():
            self._to_send.get_nowait()

    def _gone(self, kind: str, message: str) -> None:
        self._ready = False
        self._why = (kind, message)
        if kind not in self._faults:  # an attempt that fails like the one before says nothing new
            self._begin(kind, message)
        self._lose_all(kind, message)

    def _begin(self, kind: str, message: str, id: int | None = None) -> None:
        if kind != "observation_invalid":  # that was one request's, and does not last
            self._faults.add(kind)
        self._tell(Failure(kind, message, id))

    def _over(self, kind: str, message: str) -> None:
        if kind in self._faults:
            self._faults.discard(kind)
            self._tell(Failure(kind, message, recovered=True))

    def _tell(self, what: Plan | Failure) -> None:
        self._came.append(what)


class _Mismatch(Exception):
    """Another policy than the loop was started with."""
