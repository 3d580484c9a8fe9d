"""Programs that a benchmark or a test runs beside itself: started, waited for, asked by lines, ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Program", "policy_server"]


class Program:
    """A process of this Python, its output read by a thread.

    Args:
        arguments: after the interpreter.
        environment: what is added to this process's.

    Attributes:
        output: its last lines, standard error included.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )  # fmt: skip
        self.output: deque[str] = deque(maxlen=200)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def line_with(self, text: str, timeout: float = 120.0) -> str:
        """The next line that has `text` in it.

        Raises:
            RuntimeError: the program ended, or there is none in time; with its last lines.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise RuntimeError(f"no {text!r} within {timeout:.0f} s:\n" + "".join(self.output)) from None
            if line is None:
                raise RuntimeError(f"ended with code {self._process.wait()}:\n" + "".join(self.output))
            if text in line:
                return line

    def ask(self, question: Mapping[str, Any], timeout: float = 180.0) -> dict[str, Any]:
        """Give it a line of JSON, and take the next one that it gives."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.line_with('{"', timeout))
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def close(self, timeout: float = 15.0) -> None:
        """Ask it to end, and end it where it does not."""
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self.output.append(line)
                self._lines.put(line)
        except ValueError:
            pass  # closed while it was read
        self._lines.put(None)


def policy_server(policy: str, *settings: str, token: str | None = None, timeout: float = 120.0) -> tuple[Program, str]:
    """A dps-serve and its URL.

    Args:
        policy: as dps-serve takes it. settings: further ones, as "port=0", which is the default.
    """
    given = [f"policy={policy}", "log_level=error", *(settings if any("port=" in s for s in settings) else ("port=0",))]
    given += [s for s in settings if s not in given]
    environment = {} if token is None else {"DPS_TOKEN": token}
    program = Program(["-m", "diffpolicy_spec.server.cli", *given], environment)
    try:
        line = program.line_with(" serves ", timeout)
    except RuntimeError:
        program.close()
        raise
    return program, next(word for word in line.split() if word.startswith("ws"))
