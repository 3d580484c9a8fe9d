"""Control loops, a policy server and the ROS node under random faults for an hour: memory, open files and threads.

    python benchmarks/soak.py                # 60 minutes
    python benchmarks/soak.py --minutes 0.5

Four processes are watched: dps-serve, a loop whose chunks come from it (through a proxy that cuts and freezes), a loop
with a worker process of its own, and dps-ros-bridge at a rosbridge server that goes and comes. Every second or two
something goes wrong, of what docs/faults.md lists. Writes benchmarks/results/soak.{json,md}.

Memory is a process's resident set; what it rises by is the slope of a straight line through it after the first third. A
leak of 100 bytes a period at 50 Hz would be 17 MB an hour.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
RESULTS = HERE / "results"
sys.path[:0] = [str(TESTS / "control"), str(TESTS / "ros"), str(TESTS)]

__all__ = ["Watched", "main", "rise", "soak", "table"]


@dataclass
class Watched:
    """What a process needed over time.

    Attributes:
        seconds, rss_mb, files, threads: (n,) each.
    """

    seconds: list[float]
    rss_mb: list[float]
    files: list[int]
    threads: list[int]


def rise(watched: Watched) -> float:
    """MB an hour: slope of the least-squares line through the memory after the first third."""
    t, mb = np.array(watched.seconds), np.array(watched.rss_mb)
    late = t >= t[0] + (t[-1] - t[0]) / 3
    if late.sum() < 3:
        return float("nan")
    return float(3600 * np.polyfit(t[late], mb[late], 1)[0])


def _of_tests(module: str) -> Any:
    """Robots, proxies and servers that go wrong on demand stand with the tests."""
    return importlib.import_module(module)


def run_loop(url: str | None, checkpoint: str | None, seed: int) -> None:
    """A loop in this process, its robot's readings going wrong now and then; until SIGTERM."""
    from diffpolicy_spec.control import ControlConfig
    from diffpolicy_spec.control.loop import ControlLoop
    from diffpolicy_spec.control.planning import ProcessPlanner
    from diffpolicy_spec.control.records import Recorder
    from diffpolicy_spec.server import RemotePlanner

    robots, Readings = _of_tests("faults_robot"), _of_tests("faults_robot").Readings
    inner = robots.NumericRobot(hz=25.0)
    inner.sent = deque(maxlen=1000)
    robot = robots.FaultyRobot(inner, seed=seed)
    rng = random.Random(seed)
    planner: Any
    if url is not None:
        planner = RemotePlanner(url, ping_interval=0.3, ping_timeout=0.7, backoff=(0.05, 0.3))
    else:
        planner = ProcessPlanner(checkpoint)

    def disturb() -> None:
        kinds: list[Callable[[], Any]] = [
            lambda: Readings(lose=0.05, duplicate=0.05, reorder=0.05, delay=0.05),
            lambda: Readings(nan=True),
            lambda: Readings(drop=("goal",)),
            lambda: Readings(freeze=True),
            lambda: Readings(hang_s=0.8),
            lambda: Readings(fail=OSError("the bus is off")),
        ]
        while True:
            time.sleep(rng.uniform(0.5, 2.0))
            robot.wrong = rng.choice(kinds)()
            if rng.random() < 0.1:
                inner.clock_offset += rng.uniform(-5, 5)
            time.sleep(rng.uniform(0.2, 1.0))
            robot.wrong = Readings()

    recorder, config = Recorder(), ControlConfig(**_of_tests("faults_running").CONFIG)
    loop = ControlLoop(robot, planner, config, _of_tests("faults_checks").SAFETY, [recorder])
    threading.Thread(target=disturb, daemon=True).start()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    if isinstance(planner, ProcessPlanner):
        threading.Thread(target=_say_worker, args=(planner,), daemon=True).start()
    try:
        loop.run()
    finally:
        planner.close()
    print(json.dumps({"summary": recorder.summary().data()}), flush=True)


def _say_worker(planner: Any) -> None:
    said = None
    while True:
        pid = planner.pid
        if pid is not None and pid != said:
            print(json.dumps({"worker": pid}), flush=True)
            said = pid
        time.sleep(0.1)


def soak(minutes: float, seed: int = 0, every: float = 1.0) -> dict[str, Any]:
    """Run everything for so long.

    Args:
        seed: of the faults. every: s, between two looks at the processes.
    """
    from programs import Program, policy_server

    axes_of, processes = _of_tests("axes"), _of_tests("faults_processes")
    rng, faults = random.Random(seed), dict.fromkeys(FAULTS, 0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = str(_of_tests("faults_policy").save_policy(folder / "tiny"))
        (folder / "axes.yaml").write_text(axes_of.CONTRACT)
        server, url = policy_server(checkpoint, "watch_s=0.5")
        stack.enter_context(server)
        proxy = stack.enter_context(_of_tests("faults_proxy").Proxy(int(url.rpartition(":")[2].strip("/"))))
        bridge = stack.enter_context(_of_tests("rosbridge_server").RosbridgeServer(ros=2))
        axes = axes_of.Axes(bridge)
        stack.callback(axes.switch_off)
        me = str(HERE / "soak.py")
        remote = stack.enter_context(Program([me, "--loop", f"ws://127.0.0.1:{proxy.port}"]))
        local = stack.enter_context(Program([me, "--loop", checkpoint]))
        node = stack.enter_context(
            Program(["-m", "diffpolicy_spec.ros.cli", f"contract={folder / 'axes.yaml'}", f"url={bridge.url}",
                     f"server={url}", "ping_s=0.3", "pong_s=0.7", "backoff_s=[0.05, 0.3]"])
        )  # fmt: skip
        worker = json.loads(local.line_with('"worker"'))["worker"]
        node.line_with("dps-ros-bridge:")
        programs = {"server": server, "loop, chunks of the server": remote, "loop, chunks of a worker": local,
                    "ROS node": node}  # fmt: skip
        watched = {name: Watched([], [], [], []) for name in programs}
        world = World(proxy, bridge, axes, server, url, checkpoint)
        began, look = time.monotonic(), 0.0
        next_fault = 5.0
        while (now := time.monotonic() - began) < 60 * minutes:
            for name, program in programs.items():
                if not program.alive:
                    raise RuntimeError(f"{name} ended after {now:.0f} s:\n{''.join(program.output)}")
                into = watched[name]
                into.seconds.append(now)
                into.rss_mb.append(processes.rss_mb(program.pid))
                into.files.append(processes.open_files(program.pid))
                into.threads.append(processes.threads(program.pid))
            if now >= next_fault:
                kind = rng.choice(list(FAULTS))
                if kind == "the worker is killed":
                    with suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
                    worker = json.loads(local.line_with('"worker"'))["worker"]
                else:
                    FAULTS[kind](world, rng)
                faults[kind] += 1
                next_fault = time.monotonic() - began + rng.uniform(1.0, 2.0)
            look += every
            time.sleep(max(0.0, began + look - time.monotonic()))
        said = {}
        for name, program in (("loop, chunks of the server", remote), ("loop, chunks of a worker", local)):
            program.signal(signal.SIGTERM)
            said[name] = json.loads(program.line_with('"summary"'))["summary"]
        return {
            "minutes": minutes,
            "injected": faults,
            "watched": {name: asdict(one) for name, one in watched.items()},
            "rise_mb_an_hour": {name: rise(one) for name, one in watched.items()},
            "loops": said,
        }


@dataclass
class World:
    """What faults are done to."""

    proxy: Any
    bridge: Any
    axes: Any
    server: Any
    url: str
    checkpoint: str


def _for_a_while(begin: Callable[[], object], end: Callable[[], object], rng: random.Random) -> None:
    begin()
    time.sleep(rng.uniform(0.2, 2.0))
    end()


def _swap(world: World, rng: random.Random) -> None:
    _of_tests("faults_policy").save_policy(Path(world.checkpoint), seed=rng.randrange(1000))


def _flood(world: World, rng: random.Random) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    from diffpolicy_spec.server.messages import SUBPROTOCOL

    with (
        suppress(ConnectionClosed, OSError, TimeoutError),
        connect(world.url, subprotocols=[SUBPROTOCOL], compression=None, proxy=None, close_timeout=0.2) as socket,
    ):
        for _ in range(1000):
            socket.send(rng.randbytes(rng.randrange(1, 2000)))


def _rename(world: World, rng: random.Random) -> None:
    names = list(world.axes.names)
    _for_a_while(
        lambda: setattr(world.axes, "names", [f"x{name}" for name in names]),
        lambda: setattr(world.axes, "names", names),
        rng,
    )


FAULTS: dict[str, Callable[[World, random.Random], None]] = {
    "the connection is cut": lambda w, rng: w.proxy.cut(),
    "the connection is half-open": lambda w, rng: _for_a_while(w.proxy.freeze, w.proxy.thaw, rng),
    "the server is not reachable": lambda w, rng: _for_a_while(w.proxy.refuse, w.proxy.listen, rng),
    "rubbish on the connection": lambda w, rng: w.proxy.rubbish(rng.randbytes(10_000)),
    "the server stands still": lambda w, rng: _for_a_while(
        lambda: w.server.signal(signal.SIGSTOP), lambda: w.server.signal(signal.SIGCONT), rng
    ),
    "the server is flooded": _flood,
    "the checkpoint is swapped": _swap,
    "the worker is killed": lambda w, rng: None,  # done where its number is known
    "rosbridge cuts": lambda w, rng: w.bridge.kill(),
    "rosbridge is half-open": lambda w, rng: _for_a_while(
        lambda: w.bridge.half_open(True), lambda: w.bridge.half_open(False), rng
    ),
    "rosbridge sends rubbish": lambda w, rng: w.bridge.send_raw("{" * rng.randrange(1, 10_000)),
    "joints are renamed": _rename,
}


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    out = ["| process | memory at a third, MB | at the end | MB an hour | open files, first and last third | threads |",
           "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name, one in result["watched"].items():
        third = len(one["rss_mb"]) // 3
        files, threads = one["files"], one["threads"]
        out.append(
            f"| {name} | {one['rss_mb'][third]:.1f} | {one['rss_mb'][-1]:.1f} | "
            f"{result['rise_mb_an_hour'][name]:+.1f} | {min(files[: third + 1])} to {max(files[: third + 1])}, "
            f"{min(files[-third:])} to {max(files[-third:])} | {max(threads[: third + 1])}, {max(threads[-third:])} |"
        )
    injected = ", ".join(f"{kind} {count}" for kind, count in result["injected"].items())
    out += ["", f"{result['minutes']:g} minutes; faults: {injected}; and those of the loops' readings."]
    for name, loop in result["loops"].items():
        out.append(f"- {name}: {loop['periods']} periods, {loop['chunks']} chunks, commands {loop['sources']}")
    return "\n".join(out) + "\n"


def main() -> None:
    """Run, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak")
    parser.add_argument("--loop", help=argparse.SUPPRESS)  # what it runs itself as: a URL, or a checkpoint
    args = parser.parse_args()
    if args.loop is not None:
        remote = args.loop.startswith("ws")
        run_loop(args.loop if remote else None, None if remote else args.loop, args.seed)
        return
    result = soak(args.minutes, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(result) + "\n")
    args.output.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
