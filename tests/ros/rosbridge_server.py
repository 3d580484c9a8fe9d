"""A rosbridge server for tests: the published protocol on real websockets, in a thread of its own; faults on demand.

A test is a node of the server's graph: it publishes, listens, offers and calls services by plain methods. As a program
(`python rosbridge_server.py --port 9090`) it joins what is connected to it, and nothing more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from rosbridge_client import Client, Settings
from rosbridge_graph import Graph, Message, in_thread
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

__all__ = ["RosbridgeServer"]


class RosbridgeServer:
    """A rosbridge server.

    Args:
        host, port: where it listens; port 0: the system picks one, which stays for every later `start`.
        ros: 1 or 2: how types and times are named.
        send_status: whether status messages are sent. The protocol says so; the published servers only log them.
        max_size: bytes, of a message from a client; a larger one closes its connection.

    Attributes:
        port: where it listens, once started.
        delay: s, how much later everything is sent to the clients.
        slow: s, that each frame of a client takes to be read; those that are not when its connection ends are lost.
        log: (level, text) of all status messages, sent or not.
        counts: received, published, throttled, queue_full, dropped, error, warning, info, connections; of all clients
            there have been.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, ros: int = 1, send_status: bool = True, max_size: int = 2**27
    ) -> None:
        self.host, self.port, self.ros, self.delay, self.slow = host, port, ros, 0.0, 0.0
        self.log: list[tuple[str, str]] = []
        self._send_status, self._max_size = send_status, max_size
        self.graph = Graph(ros)
        self._clients: dict[Client, ServerConnection] = {}
        self._gone: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._flow: asyncio.Event
        self._stop: asyncio.Event

    # Its life

    def start(self) -> RosbridgeServer:
        """Listen; returns when it does. After `stop` it listens on the same port again, its graph's topics kept.

        Raises:
            OSError: the port is taken.
        """
        if self._thread is not None:
            raise RuntimeError("the server runs already")
        ready: list[BaseException | None] = []
        self._thread = threading.Thread(target=self._run, args=(ready,), name="rosbridge", daemon=True)
        self._thread.start()
        self._wait(lambda: bool(ready), 30, "the server did not start")
        if ready[0] is not None:
            self._thread.join()
            self._thread = None
            raise ready[0]
        return self

    def stop(self) -> None:
        """Cut every connection and stop listening, as a server that dies."""
        if self._thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._thread, self._loop = None, None

    def __enter__(self) -> RosbridgeServer:
        return self.start() if self._thread is None else self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"ws://{self.host}:{self.port}"

    # A node of its graph

    def publish(self, topic: str, kind: str, message: Message, *, latch: bool = False) -> None:
        """Publish a message to the clients that subscribed; missing fields get their defaults.

        Raises:
            GraphError, TypeMismatch: the topic is of another type, or the message is not of its.
        """

        def publish() -> None:
            self.graph.topic(topic, kind)
            self.graph.publish(topic, message, latch=latch)

        self._do(publish)

    def on(self, topic: str, callback: Callable[[Message], None], kind: str | None = None) -> None:
        """Call back, in the server's thread, with what clients publish on the topic; `kind` makes a new one."""
        self._do(lambda: self.graph.subscribe(topic, kind, object(), callback))

    def advertise_service(self, name: str, kind: str, handler: Callable[[Message], Message]) -> None:
        """Offer a service; the handler gets the request's fields, in a thread, and returns the response's."""
        self._do(lambda: self.graph.offer(name, kind, lambda request: in_thread(handler, request), self))

    def call_service(self, name: str, args: Message | None = None, timeout: float = 10.0) -> Message:
        """Call a service, a client's or one's own.

        Raises:
            GraphError: there is none, or its client went; TimeoutError: no answer.
        """
        assert self._loop is not None, "the server is not started"
        return asyncio.run_coroutine_threadsafe(self.graph.call(name, args or {}), self._loop).result(timeout)

    def messages(self, topic: str, n: int = 0, timeout: float = 10.0) -> list[Message]:
        """What clients published on the topic, oldest first; waits until there are n.

        Raises:
            TimeoutError: there are not.
        """
        return [message for _, message in self.timed_messages(topic, n, timeout)]

    def timed_messages(self, topic: str, n: int = 0, timeout: float = 10.0) -> list[tuple[float, Message]]:
        """As `messages`, each with the time (s, monotonic) it came."""

        def kept() -> list[tuple[float, Message]]:
            found = self.graph.topics.get(topic)
            return [] if found is None else list(found.kept)

        self._wait(lambda: len(self._do(kept)) >= n, timeout, f"fewer than {n} messages on {topic}")
        return self._do(kept) if self._thread is not None else kept()

    def forget_messages(self, topic: str) -> None:
        """Begin anew to keep what is published."""
        self._do(lambda: topic in self.graph.topics and self.graph.topics[topic].kept.clear())

    def wait_for(self, what: Callable[[], Any], timeout: float = 10.0, message: str = "") -> None:
        """Wait until `what()` is true; it is asked whenever something happened.

        Raises:
            TimeoutError: it did not become so.
        """
        self._wait(what, timeout, message or "what was waited for did not happen")

    def subscriptions(self, topic: str) -> list[Settings]:
        """Of the clients that subscribed to the topic: throttle_rate, queue_length and so on, as merged."""
        return self._do(lambda: [c.subscriptions[topic].settings for c in self._clients if topic in c.subscriptions])

    def publishers(self, topic: str) -> int:
        """Clients that advertise the topic."""
        return self._do(lambda: len(self.graph.topics[topic].publishers) if topic in self.graph.topics else 0)

    def has_service(self, name: str) -> bool:
        """Whether the service is advertised."""
        return self._do(lambda: name in self.graph.services)

    @property
    def clients(self) -> int:
        """Connected clients."""
        return len(self._clients)

    @property
    def counts(self) -> Counter[str]:
        """See the class."""
        return self._do(lambda: sum((client.counts for client in self._clients), self._gone.copy()))

    # Faults

    def kill(self) -> None:
        """Cut every connection without a word; go on listening."""
        self._do(self._abort)

    def half_open(self, on: bool) -> None:
        """Read nothing and send nothing, pings unanswered, but close nothing; new connections hang. Off: go on."""

        def change() -> None:
            (self._flow.clear if on else self._flow.set)()
            for connection in self._clients.values():
                if not connection.transport.is_closing():
                    (connection.transport.pause_reading if on else connection.transport.resume_reading)()

        self._do(change)

    def send_raw(self, text: str | bytes) -> None:
        """Send every client one frame, whatever it holds."""
        self._do(lambda: [client.outbox.put_nowait(text) for client in self._clients])

    # Inside

    def _run(self, ready: list[BaseException | None]) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: list[BaseException | None]) -> None:
        self._flow, self._stop = asyncio.Event(), asyncio.Event()
        self._flow.set()
        try:
            server = await serve(
                self._handle, self.host, self.port, process_request=self._admit, ping_interval=None,
                max_size=self._max_size, compression=None, close_timeout=0.1,
            )  # fmt: skip
        except OSError as error:
            ready.append(error)
            self._tell()
            return
        self._server, self._loop = server, asyncio.get_running_loop()
        self.port = server.sockets[0].getsockname()[1]
        ready.append(None)
        self._tell()
        await self._stop.wait()
        server.close(close_connections=False)
        self._abort()
        self._flow.set()
        await server.wait_closed()

    async def _admit(self, connection: ServerConnection, _: object) -> None:
        await self._flow.wait()

    async def _handle(self, connection: ServerConnection) -> None:
        client = Client(self.graph, self._note, lambda: self.delay, send_status=self._send_status)
        client.counts["connections"] += 1
        self._clients[client] = connection
        waiting: asyncio.Queue[str | bytes] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._write(client, connection)),
            asyncio.create_task(self._read(client, waiting)),
        ]
        self._tell()
        try:
            async for frame in connection:
                await self._flow.wait()
                waiting.put_nowait(frame)
        except ConnectionClosed:
            pass
        finally:
            # Frames that still wait are thrown away, as rosbridge does when a connection ends.
            for task in tasks:
                task.cancel()
            client.end()
            del self._clients[client]
            self._gone += client.counts
            self._tell()

    async def _read(self, client: Client, waiting: asyncio.Queue[str | bytes]) -> None:
        while True:
            frame = await waiting.get()
            if self.slow:
                await asyncio.sleep(self.slow)
            client.receive(frame)
            self._tell()

    async def _write(self, client: Client, connection: ServerConnection) -> None:
        while True:
            frame = await client.outbox.get()
            await self._flow.wait()
            try:
                await connection.send(frame)
            except ConnectionClosed:
                return
            client.outbox.task_done()

    def _abort(self) -> None:
        for connection in self._clients.values():
            connection.transport.abort()

    def _note(self, level: str, text: str) -> None:
        self.log.append((level, text))
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, what: Callable[[], Any], timeout: float, message: str) -> None:
        end = time.monotonic() + timeout
        while not what():  # asked without the lock, which the server's thread takes while it works
            if time.monotonic() > end:
                raise TimeoutError(f"{message} within {timeout:g} s; the server's log: {self.log[-5:]}")
            with self._changed:
                self._changed.wait(0.05)

    def _do(self, what: Callable[[], Any]) -> Any:
        if self._loop is None or self._thread is None or threading.current_thread() is self._thread:
            return what()

        thread, done = self._thread, Future[Any]()

        def run() -> None:
            try:
                done.set_result(what())
            except BaseException as error:
                done.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:  # stopped just now
            return what()
        while not done.done() and thread.is_alive():
            wait([done], 0.1)
        return done.result(0) if done.done() else what()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A rosbridge server without ROS, for tests and trials.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the system picks one")
    parser.add_argument("--ros", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    with RosbridgeServer(options.host, options.port, ros=options.ros) as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
