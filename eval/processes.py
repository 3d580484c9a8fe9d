"""Processes that answer requests over a pipe, end with their parent, and may be killed at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["DeadPeerError", "Peer"]


class DeadPeerError(RuntimeError):
    """The other process is gone; the message says how it ended."""


class _RemoteTraceback(Exception):
    """Carries the text of a traceback from another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Peer:
    """A spawned process with a function that answers requests, one at a time.

    Args:
        make: module-level function, called in the process with `args`; gives the function request -> answer.
        args: picklable.
        name: of the process, for messages.
    """

    def __init__(self, make: Callable[..., Callable[[Any], Any]], *args: Any, name: str) -> None:
        context = multiprocessing.get_context("spawn")  # forked, a process would share OpenGL, threads and locks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args), name=name, daemon=True)
        self.process.start()
        theirs.close()  # else the pipe would stay open when the process dies

    def ask(self, request: Any) -> None:
        """Send a request; `answer` waits for what comes of it. A process that is dead shows when asked for answers."""
        with suppress(OSError):
            self.connection.send(request)

    def answer(self) -> Any:
        """What came of the oldest request.

        Raises:
            DeadPeerError: the process died.
            Exception: what the function raised there.
        """
        try:
            worked, result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise DeadPeerError(self.ending()) from error
        if worked:
            return result
        raised, text = result
        raise raised from _RemoteTraceback(text)

    def ending(self) -> str:
        """How the process ended, in words."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"ended with code {code}"
        try:
            killed = signal.Signals(-code).name
        except ValueError:
            killed = f"signal {-code}"
        return f"was killed by {killed}" + (", perhaps for want of memory" if killed == "SIGKILL" else "")

    def kill(self) -> None:
        """End the process at once; a second call does nothing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: Callable[[Any], Any] | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        reply: tuple[bool, Any]
        try:
            if answer is None:
                answer = make(*args)
            reply = True, answer(request)
        except Exception as error:
            reply = False, (error, traceback.format_exc())
        try:
            connection.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as unsendable:  # an exception or an answer that does not pickle
            text = reply[1][1] if not reply[0] else traceback.format_exc()
            connection.send((False, (RuntimeError(f"{unsendable!r} while sending {reply[1]!r:.200}"), text)))


def _end_with_parent() -> None:
    # A request under way may take a minute; nobody would be there to hear the answer.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
