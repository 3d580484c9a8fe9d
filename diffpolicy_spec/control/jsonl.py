"""A log of a control loop: events as lines of JSON, in files that do not grow without end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from diffpolicy_spec.control.background import Background
from diffpolicy_spec.control.events import Tick
from diffpolicy_spec.control.lines import VERSION, line_of, read_records
from diffpolicy_spec.control.records import Recorder, Summary, replay

__all__ = ["JsonLines", "summary_of"]

RETRY_S = 1.0


class JsonLines(Background):
    """Writes events to a file; lines.py says how they look.

    The loop never waits: a thread writes. Where the disk is full or gone, events are dropped and counted, and a line in
    the file says how many once there is room again.

    Args:
        path: of the file; appended to. Its folder is made.
        rotate_mb: size at which it becomes `path.1`, `path.1` becomes `path.2` and so on; None: it grows.
        keep: how many of those are kept.
        ticks: whether each period is a line as well; without, a record is some lines a second, and tells no jitter.
        capacity: events kept until they are written.

    Attributes:
        lost: events that did not get into the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: a size that cannot be.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        rotate_mb: float | None = 100.0,
        keep: int = 3,
        ticks: bool = True,
        capacity: int = 20_000,
    ) -> None:
        super().__init__(capacity)
        if (rotate_mb is not None and not rotate_mb > 0) or keep < 1:
            raise ValueError(f"rotate_mb must be positive and keep at least 1, got {rotate_mb} and {keep}")
        self.path = Path(path)
        self._limit = None if rotate_mb is None else int(1e6 * rotate_mb)
        self._keep, self._ticks = keep, ticks
        self._failed = self._told = 0
        self._reason, self._retry = "", 0.0
        self._file = self._opened()
        self._begin()

    @property
    def lost(self) -> int:
        return self.dropped + self._failed

    def on_tick(self, event: Tick) -> None:
        """See `Subscriber`."""
        if self._ticks:
            super().on_tick(event)

    # In the thread.

    def work(self, event: Any) -> None:
        """Write a line, or count it as lost."""
        try:
            line = line_of(event)
        except (TypeError, ValueError) as error:
            self._fail(f"an event that is none: {error}")
            return
        if self._file < 0 and time.monotonic() < self._retry:
            self._failed += 1
            return
        try:
            self._rotate()
            self._tell_lost()
            self._write(line)
        except OSError as error:
            self._fail(f"{error.strerror or error}")
        # Whoever waits for Python's global lock gets it between two lines.
        time.sleep(0)

    def idle(self) -> None:
        """See `Background`."""
        if self._file >= 0 and self.lost > self._told:
            try:
                self._tell_lost()
            except OSError as error:
                self._fail(f"{error.strerror or error}", events=0)

    def finish(self) -> None:
        """See `Background`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _opened(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._file = file
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")  # whoever wrote the last line did not end it
            begun = {"event": "log", "version": VERSION, "wall": time.time(), "monotonic": time.monotonic()}
            self._write(json.dumps(begun))
        except OSError:
            os.close(file)
            self._file = -1
            raise
        return file

    def _write(self, line: str) -> None:
        """The whole line, or nothing."""
        data = line.encode() + b"\n"
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(f"no room: {written} of {len(data)} bytes written")

    def _rotate(self) -> None:
        if self._file < 0:
            self._file = self._opened()
        elif self._limit is not None and os.fstat(self._file).st_size >= self._limit:
            os.close(self._file)
            self._file = -1
            for i in range(self._keep, 0, -1):
                old = self.path if i == 1 else Path(f"{self.path}.{i - 1}")
                if old.exists():
                    old.replace(f"{self.path}.{i}")
            self._file = self._opened()

    def _tell_lost(self) -> None:
        count = self.lost - self._told
        if count:
            reason = self._reason or "more events than could be written"
            self._write(json.dumps({"event": "lost", "count": count, "reason": reason}))
            self._told += count
            self._reason = ""

    def _fail(self, reason: str, events: int = 1) -> None:
        self._failed += events
        self._reason, self._retry = reason, time.monotonic() + RETRY_S
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def summary_of(path: str | Path) -> Summary:
    """Of a file that JsonLines wrote; see `read_records` for what is raised."""
    recorder = Recorder()
    replay(read_records(path), recorder)
    return recorder.summary()
