"""dps-ros-bridge drives the simulated robot: four processes that know each other by topics and services only."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from programs import Program
from robot_drive import Driven, control_config
from websockets.sync.client import connect

from diffpolicy_spec.control.jsonl import summary_of
from diffpolicy_spec.ros.contracts import example

__all__ = ["by_node", "call", "contract_text"]

HERE = Path(__file__).resolve().parent
ROSBRIDGE = HERE.parent / "tests" / "ros" / "rosbridge_server.py"
WRITTEN = "control: {control_hz: 20, n_action_steps: 8}"


def contract_text(control_hz: float) -> str:
    """The contract `lift_sim` of the package, at another rate of wall clock.

    A command leaves a whole period before its time: two processes and their sockets are on its way.
    """
    config = control_config(control_hz, lead_ms=1000 / control_hz)
    text = example("lift_sim").read_text()
    assert WRITTEN in text, f"{WRITTEN!r} is not in the contract any more"
    settings = {
        "control_hz": control_hz, "n_action_steps": 8, "lead_ms": config.lead_ms, "deadline_ms": config.deadline_ms,
        "seed": config.seed,
    }  # fmt: skip
    text = text.replace("tolerance_ms: 25", f"tolerance_ms: {500 / control_hz:g}")  # half a step still
    return text.replace(WRITTEN, f"control: {json.dumps(settings)}")


def call(url: str, service: str, timeout: float = 60.0) -> str:
    """Call a std_srvs/Trigger through rosbridge, as soon as it is offered; what it answers.

    Raises:
        RuntimeError: it says no, or is not offered in time; TimeoutError: it says nothing.
    """
    end = time.monotonic() + timeout
    with connect(url, proxy=None) as socket:
        while True:
            socket.send(json.dumps({"op": "call_service", "id": "call", "service": service, "args": {}}))
            answer: dict[str, Any] = {}
            while answer.get("op") != "service_response":
                answer = json.loads(socket.recv(timeout))
            values = answer.get("values")
            if answer.get("result") and isinstance(values, dict) and values["success"]:
                return str(values["message"])
            if "does not exist" not in str(values) or time.monotonic() > end:
                raise RuntimeError(f"{service}: {values}")
            time.sleep(0.05)


def by_node(seeds: Sequence[int], control_hz: float = 20.0, max_steps: int = 400, timeout: float = 120.0) -> Driven:
    """Episodes driven by dps-ros-bridge, begun and ended by its services.

    Raises:
        TimeoutError: an episode does not end; RuntimeError: a program ended.
    """
    into = Driven()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lift.yaml").write_text(contract_text(control_hz))
        records = folder / "loop.jsonl"
        with Program([str(ROSBRIDGE), "--ros", "2"]) as bridge:
            url = bridge.line_with("ws://").strip()
            with (
                Program(_robot(url, control_hz, max_steps)) as robot,
                Program(_node(url, folder / "lift.yaml", records)) as node,
            ):
                node.line_with("dps-ros-bridge:")
                for seed in seeds:
                    call(url, "/lift_policy/reset")
                    time.sleep(5 / control_hz)  # it comes to rest, at once within these limits; then nothing is sent
                    robot.ask({"reset": seed})
                    call(url, "/lift_policy/start")
                    result = robot.ask({"result": timeout})["result"]
                    if result is None:
                        said = "".join([*node.output, *robot.output])
                        raise TimeoutError(f"episode {seed} has not ended within {timeout:.0f} s:\n{said}")
                    into.episodes.append(result)
                node.close()
        into.loop = summary_of(records)
    return into


def _node(url: str, contract: Path, records: Path) -> list[str]:
    return ["-m", "diffpolicy_spec.ros.cli", f"contract={contract}", f"url={url}", "policy=lift", f"records={records}"]


def _robot(url: str, control_hz: float, max_steps: int) -> list[str]:
    return [str(HERE / "robot_topics.py"), "--url", url, "--control-hz", str(control_hz), "--max-steps", str(max_steps)]
