"""The server: a policy behind a websocket, an engine's thread under it, a door in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import signal
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_spec.control.protocols import PolicyInfo
from diffpolicy_spec.optional import require
from diffpolicy_spec.server.auth import check_binding
from diffpolicy_spec.server.config import ServerConfig
from diffpolicy_spec.server.connection import GOING_AWAY, INTERNAL_ERROR, TRY_LATER, Connection
from diffpolicy_spec.server.door import Door, limited_connections
from diffpolicy_spec.server.engine_thread import EngineThread
from diffpolicy_spec.server.limits import Places
from diffpolicy_spec.server.messages import SUBPROTOCOL
from diffpolicy_spec.server.metrics import Metrics
from diffpolicy_spec.server.openpi_protocol import OpenpiConnection
from diffpolicy_spec.server.own_protocol import OwnConnection
from diffpolicy_spec.server.service import Service, message_bytes
from diffpolicy_spec.server.source import Source

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy
    from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["PolicyServer"]

_LOG = logging.getLogger("diffpolicy_spec.server")
_SOCKETS = logging.getLogger("diffpolicy_spec.server.websockets")
_SOCKETS.setLevel(logging.CRITICAL)  # what clients do wrong is counted, and told in lines of ours

_MOST_FRAMES = 4  # of a connection that wait to be read
_LOOK_S = 0.1  # between looks at a checkpoint's files, once it is looked at
_RELOAD_S = 1.0  # for how long after SIGHUP


class PolicyServer:
    """Serves a policy to any number of robots.

    Args:
        policy: itself, or a checkpoint's path or a shipped policy's name, whose files are watched.
        config: see there.
        sampler: how chunks are drawn; None: the policy's own way.
        device, weights: of a checkpoint, see `load_policy`.
        num_threads: of torch.

    Raises:
        ValueError: settings that do not go together, such as an address for others without tokens.
        OSError: a certificate that cannot be read.
        CheckpointError, ScheduleError: the policy cannot be loaded, or not be sampled so.
    """

    def __init__(
        self,
        policy: DiffusionPolicy | str | Path,
        config: ServerConfig | None = None,
        sampler: SamplerConfig | None = None,
        *,
        device: str = "cpu",
        weights: str = "auto",
        num_threads: int = 1,
    ) -> None:
        self.config = config = config or ServerConfig()
        check_binding(config.host, config.tokens, config.insecure)
        self._tls = _tls(config)
        self._serve = require("websockets.asyncio.server", extra="server", needed_by="dps-serve").serve
        self._gone = require("websockets.exceptions", extra="server").ConnectionClosed
        self.metrics = Metrics()
        self._source = Source(policy, config, sampler, device=device, weights=weights)
        self._engine = EngineThread(
            self._source.engine, self._source.policy, self._source.info, max_chains=config.max_chains,
            max_waiting=config.limits.max_waiting, num_threads=num_threads,
            warm_up=self._source.first_observations(),
        )  # fmt: skip
        self._engine.on_failure = self.metrics.engine_failures.inc
        version = importlib.metadata.version("diffpolicy-spec")
        self.service = Service(self._engine, config, self.metrics, version)
        self._places = Places(config.limits.max_connections, config.limits.max_connections_per_client)
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None
        self._reload_until = float("-inf")
        self._thread: threading.Thread | None = None
        self.port = config.port
        """Where it listens; the one that the system picked, once it does."""

    @property
    def info(self) -> PolicyInfo:
        """Of the policy in use."""
        return self.service.info

    @property
    def url(self) -> str:
        """For clients on this machine, or for others where `host` is an address of theirs."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.config.host, self.config.host)
        return f"{'wss' if self._tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run(self, ready: Callable[[PolicyServer], object] = lambda server: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once. SIGHUP looks at the checkpoint.

        In the main thread. `ready` is called when clients can connect.

        Raises:
            OSError: the address is taken, or none of this machine's.
        """
        if hasattr(signal, "SIGHUP"):  # sent while it still starts: the checkpoint is being read anyway
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._engine.start()
        asyncio.run(self._main(lambda: ready(self), signals=True))

    def start(self, timeout: float = 300.0) -> PolicyServer:
        """Serve in a thread of its own; returns when clients can connect.

        Raises:
            OSError: as `run`.
            TimeoutError: it was not ready in time.
        """
        up: Future[None] = Future()

        def work() -> None:
            try:
                self._engine.start()
                asyncio.run(self._main(lambda: up.set_result(None), signals=False))
            except BaseException as error:
                if up.done():
                    raise
                up.set_exception(error)

        self._thread = threading.Thread(target=work, name="server", daemon=True)
        self._thread.start()
        up.result(timeout)
        return self

    def stop(self, *, drain: bool = True) -> None:
        """End a server that was started: what is under way is answered first, unless told not to; may be repeated."""
        self._call(lambda: self._end(hurry=not drain))
        if self._thread is not None:
            self._thread.join(self.config.drain_s + 10.0)

    def reload(self) -> None:
        """Look at the checkpoint now, from any thread; what has become of it is logged and counted."""
        self._call(self._reload)

    def __enter__(self) -> PolicyServer:
        return self if self._thread is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _call(self, what: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(what)

    # From here on everything runs in the event loop.

    async def _main(self, ready: Callable[[], object], *, signals: bool) -> None:
        self._loop, self._ending, self._hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        limits = self.config.limits
        door = Door(self.service, self._places)
        try:
            server = await self._serve(
                self._handle, self.config.host or None, self.config.port, ssl=self._tls, process_request=door,
                select_subprotocol=_ours, origins=[None, *self.config.origins], compression=None,
                max_size=message_bytes(self.info, self.config), max_queue=_MOST_FRAMES, logger=_SOCKETS,
                open_timeout=limits.handshake_s, close_timeout=2.0, ping_interval=limits.ping_s,
                ping_timeout=limits.pong_s, create_connection=limited_connections(limits.max_connections),
                server_header=None,
            )  # fmt: skip
            self.port = next(iter(server.sockets)).getsockname()[1]
            if signals:
                self._take_signals()
            watching = asyncio.create_task(self._watch())
            ready()
            await self._ending.wait()
            watching.cancel()
            await self._drain(server)
        finally:
            self._engine.stop()

    def _take_signals(self) -> None:
        assert self._loop is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end)
        if hasattr(signal, "SIGHUP"):
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _end(self, *, hurry: bool = False) -> None:
        assert self._ending is not None
        assert self._hurry is not None
        if hurry or self._ending.is_set():
            self._hurry.set()
        self._ending.set()

    async def _handle(self, socket: Any) -> None:
        client = socket.client_name
        why = self._places.enter(client)
        if why is not None:
            self.metrics.refused.labels("full").inc()
            await socket.close(TRY_LATER, why)
            return
        kind = OwnConnection if socket.subprotocol == SUBPROTOCOL else OpenpiConnection
        connection = kind(self.service, socket, client)
        self._connections.add(connection)
        _LOG.info("%s: connected (%s)", client, connection.protocol)
        try:
            await connection.run()
        except self._gone:
            pass
        except Exception:
            _LOG.exception("%s: a connection failed", client)
            await connection.close(INTERNAL_ERROR, "the server failed; see its log")
        finally:
            self._connections.discard(connection)
            self._places.leave(client)
            _LOG.info("%s: disconnected", client)

    async def _drain(self, server: Any) -> None:
        """Nothing new is let in; what is under way is answered, then each connection closed."""
        assert self._hurry is not None
        self.service.draining = True
        server.close(close_connections=False)
        _LOG.info("going down: %d chunks under way, %d wait", self._engine.under_way, self._engine.waiting)
        left = [asyncio.create_task(connection.drain()) for connection in self._connections]
        hurry = asyncio.create_task(self._hurry.wait())
        if left and not self._hurry.is_set():
            either: set[asyncio.Future[Any]] = {asyncio.gather(*left, return_exceptions=True), hurry}
            await asyncio.wait(either, timeout=self.config.drain_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for task in left:
            task.cancel()
        late = [c.close(GOING_AWAY, "the server is going down") for c in list(self._connections)]
        await asyncio.gather(*late, return_exceptions=True)

    def _reload(self) -> None:
        self._reload_until = time.monotonic() + _RELOAD_S

    async def _watch(self) -> None:
        """Look at the checkpoint all the time, or only for a while after somebody asked."""
        asked = False
        while self._source.watched:
            await asyncio.sleep(_LOOK_S)
            asking = time.monotonic() < self._reload_until
            if self.config.watch_s is not None or asking or self._source.loading:
                await self._looked()
            if asked and not asking and not self._source.loading:
                _LOG.info("the checkpoint was looked at; in use: %s", self.info.policy)
            asked = asking

    async def _looked(self) -> None:
        from diffpolicy_spec.policies.reload import Swapped

        found = self._source.poll()
        if found is None:
            return
        outcome, message = "swapped" if isinstance(found, Swapped) else "refused", found.message
        if isinstance(found, Swapped):
            try:
                await asyncio.wrap_future(self._engine.swap(self._source.policy, self._source.info))
            except Exception as error:
                outcome, message = "refused", f"the new checkpoint cannot be used: {error}"
        self.metrics.swaps.labels(outcome).inc()
        _LOG.log(logging.INFO if outcome == "swapped" else logging.WARNING, "%s", message)
        if outcome == "swapped":
            self.service.described()
            for connection in list(self._connections):
                asyncio.create_task(connection.policy_changed())  # noqa: RUF006  # ends with its own time limit


def _ours(connection: Any, offered: Sequence[str]) -> str | None:
    """Our subprotocol, where the client knows it; openpi's client offers none."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:
        raise OSError(f"TLS: {config.tls_cert} and {config.tls_key} are no certificate and its key: {error}") from error
    return context
