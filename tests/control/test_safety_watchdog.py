"""The watchdog: real threads, real time, waits for events only."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from diffpolicy_spec.control import Intervention, SafetyConfig
from diffpolicy_spec.control.safety import Safety, Watchdog

HZ = 50.0


class Wire:
    """A robot's send: keeps what came, hangs or fails when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[np.ndarray, float]] = []
        self.told: list[Intervention] = []
        self.came = threading.Condition()
        self.hang, self.error = threading.Event(), False
        self.hang.set()

    def send(self, action: np.ndarray, when: float) -> None:
        self.hang.wait(60)
        if self.error:
            raise OSError("unplugged")
        with self.came:
            self.sent.append((action, when))
            self.came.notify_all()

    def tell(self, one: Intervention) -> None:
        with self.came:
            self.told.append(one)
            self.came.notify_all()

    def until(self, what: Any, timeout: float = 30) -> None:
        with self.came:
            assert self.came.wait_for(what, timeout)


def watched(wire: Wire, **config: Any) -> tuple[Safety, Watchdog]:
    safety = Safety(SafetyConfig(watchdog_ms=100, **config), 1, HZ)
    return safety, Watchdog(safety, wire.send, wire.tell)


def drive(safety: Safety, watchdog: Watchdog, wire: Wire, wanted: float, now: float) -> None:
    with watchdog.lock:
        command = safety.command(np.array([wanted]), now)
        if command.action is not None:
            wire.send(command.action, now)
        watchdog.fed(now)


def test_where_the_loop_hangs_the_safety_action_is_sent_at_its_rate_and_told() -> None:
    wire = Wire()
    safety, watchdog = watched(wire, kind="velocity", acceleration=10)
    with watchdog:
        begun = time.monotonic()
        drive(safety, watchdog, wire, 0.1, begun)
        wire.until(lambda: len(wire.sent) >= 8)
        first = wire.sent[1][1]
        # Not before its time; how much later depends on the machine, and is seconds only where it does not work at all.
        assert 0.1 <= first - begun < 10
        gaps = np.diff([when for _, when in wire.sent[1:]])
        assert (gaps >= 1 / HZ - 1e-3).all()
        assert wire.sent[-1][0].tolist() == [0]
        assert [one.kind for one in wire.told] == ["watchdog"]
        assert "the loop has sent nothing for 1" in wire.told[0].message
        # The loop is back, just after a command of the watchdog's; what it sends goes on.
        count = len(wire.sent)
        wire.until(lambda: len(wire.sent) > count)
        for _ in range(5):
            drive(safety, watchdog, wire, 0.1, time.monotonic())
            time.sleep(1 / HZ)
        assert sum(action[0] == 0.1 for action, _ in wire.sent[count:]) >= 3
        assert safety.counts["watchdog", None] >= watchdog.sent
        with watchdog.lock:
            watchdog.rest()
        count = watchdog.sent
        time.sleep(0.25)
        assert watchdog.sent == count


def test_nothing_is_sent_before_the_loop_has() -> None:
    wire = Wire()
    _, watchdog = watched(wire)
    with watchdog:
        time.sleep(0.3)
    assert wire.sent == []


def test_an_emergency_stop_holds_where_the_loop_hangs() -> None:
    wire = Wire()
    safety, watchdog = watched(wire, velocity=5, acceleration=50, action="zero")
    now = time.monotonic() - 10 / HZ
    for n in range(10):
        drive(safety, watchdog, wire, 0.02 * n**1.5 / HZ, now + n / HZ)
    with watchdog:
        safety.emergency_stop("now")
        wire.until(lambda: watchdog.sent >= 5)
    last = [action[0] for action, _ in wire.sent[-3:]]
    assert last[0] == last[1] == last[2] != 0  # stops; "zero" would go there
    assert safety.state == "stopped"


def test_a_send_that_hangs_is_told_and_one_that_fails_too() -> None:
    wire = Wire()
    safety, watchdog = watched(wire)
    with watchdog:
        drive(safety, watchdog, wire, 0.1, time.monotonic())
        wire.hang.clear()

        def unplugged() -> None:
            with pytest.raises(OSError, match="unplugged"):
                drive(safety, watchdog, wire, 0.1, time.monotonic() + 1 / HZ)

        hanging = threading.Thread(target=unplugged)
        hanging.start()
        wire.until(lambda: any("has not returned" in one.message for one in wire.told))
        wire.error = True
        wire.hang.set()
        hanging.join(30)
        wire.until(lambda: any("could not be sent: OSError: unplugged" in one.message for one in wire.told))
        wire.error = False
        count = len(wire.sent)
        wire.until(lambda: len(wire.sent) >= count + 2)
    assert not watchdog._thread.is_alive()


def test_it_ends_though_send_hangs() -> None:
    wire = Wire()
    safety, watchdog = watched(wire)
    watchdog.start()
    drive(safety, watchdog, wire, 0.1, time.monotonic())
    wire.hang.clear()
    time.sleep(0.2)
    begun = time.monotonic()
    watchdog.close()
    assert time.monotonic() - begun < 10
    wire.hang.set()
