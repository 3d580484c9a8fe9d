"""A TCP proxy that does to a connection what networks do: cuts it, goes silent, sends rubbish, is not there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`, in a thread.

    Attributes:
        port: where it listens; stays the same while it does not.
        connections: made so far.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._set_up())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """Close all connections; new ones are taken."""
        self._call(self._cut())

    def refuse(self) -> None:
        """Close all connections and the port, until `listen`."""
        self._call(self._refuse())

    def listen(self) -> None:
        """Take connections (again), at the same port."""
        self._call(self._listen())

    def freeze(self) -> None:
        """Half-open: connections stay, new ones are taken, nothing passes."""
        self._call(self._set_gate(False))

    def thaw(self) -> None:
        """Let pass what was held up, and all that comes."""
        self._call(self._set_gate(True))

    def rubbish(self, data: bytes) -> None:
        """Put bytes that nobody sent into every connection, in both directions."""
        self._call(self._rubbish(data))

    def close(self) -> None:
        """End it."""
        if self._loop.is_closed():
            return
        self._call(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _call(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _set_up(self) -> None:
        self._gate = asyncio.Event()
        self._gate.set()
        await self._listen()

    async def _set_gate(self, open_: bool) -> None:
        (self._gate.set if open_ else self._gate.clear)()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()
        self._pairs.clear()

    async def _rubbish(self, data: bytes) -> None:
        for pair in self._pairs:
            for writer in pair:
                writer.write(data)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._pairs.discard(pair)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                await self._gate.wait()
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()
