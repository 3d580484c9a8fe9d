"""`dps-ros-bridge`: drive a robot behind rosbridge by a policy.

    dps-ros-bridge contract=arm.yaml policy=outputs/train/lift/policy url=ws://robot:9090
    dps-ros-bridge contract=panda server=ws://gpu-box:8000 records=outputs/arm.jsonl

Settings and their defaults: configs/ros_bridge.yaml. SIGINT and SIGTERM bring the robot to rest and end it; the second
one is the emergency stop.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from diffpolicy_spec.command import command
from diffpolicy_spec.control import Fault, Intervention, Planner, Subscriber
from diffpolicy_spec.control.background import Background
from diffpolicy_spec.ros.contract import Contract, load_contract
from diffpolicy_spec.ros.contract_inputs import IMAGE_TYPES
from diffpolicy_spec.ros.contracts import example, examples
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.roslib_transport import RoslibTransport

__all__ = ["contract_of", "listeners_of", "main", "node_of", "planner_of"]

SWITCH_S = 1e-3
LOGGER = logging.getLogger("diffpolicy_spec.ros")


class Sayer(Background):
    """Says what goes wrong, in a line each. The loop does not wait for whoever reads them."""

    def __init__(self) -> None:
        super().__init__(capacity=1000)
        self._begin()

    def _put(self, event: Any) -> None:
        if isinstance(event, Fault | Intervention):
            super()._put(event)

    def work(self, event: Any) -> None:
        """Say an event."""
        over = isinstance(event, Fault) and event.recovered
        (LOGGER.info if over else LOGGER.warning)("%s: %s", event.kind, event.message)


def contract_of(cfg: Mapping[str, Any]) -> Contract:
    """The contract that settings name.

    Raises:
        ValueError: no such example, or what is wrong with the file.
        OSError: it cannot be read.
    """
    given = str(cfg["contract"])
    if not Path(given).is_file() and given in examples():
        given = str(example(given))
    contract = load_contract(given)
    if cfg["autostart"] is not None:
        contract = replace(contract, autostart=_flag(cfg, "autostart"))
    return contract


def planner_of(cfg: Mapping[str, Any], contract: Contract) -> Planner:
    """Where chunks are made, not started.

    Raises:
        ValueError, ImportError: what cannot be.
    """
    if cfg["server"] is not None:
        from diffpolicy_spec.server.remote import RemotePlanner

        return RemotePlanner(str(cfg["server"]), token=cfg["server_token"], tls_ca=cfg["server_tls_ca"])
    from diffpolicy_spec.control.planning import ProcessPlanner

    policy = str(cfg["policy"])
    if not Path(policy).exists() and policy not in _shipped():
        raise ValueError(f"policy={policy}: no such path, nor a shipped policy ({', '.join(_shipped())})")
    sampler = dict(cfg["sampler"])
    sampler["options"] = {key: value for key, value in (sampler.get("options") or {}).items() if value is not None}
    return ProcessPlanner(
        policy,
        sampler=sampler,
        device=cfg["device"],
        weights=cfg["weights"],
        num_threads=cfg["num_threads"],
        nice=cfg["nice"],
        warm_up=cfg["warm_up"],
        watch=_flag(cfg, "watch"),
        finish_steps=contract.control.finish_steps,
        committed=contract.control.freeze,
    )


def listeners_of(cfg: Mapping[str, Any], contract: Contract) -> list[Subscriber]:
    """What keeps records.

    Raises:
        OSError: a file cannot be written. ImportError: rerun is not installed.
    """
    made: list[Subscriber] = [Sayer()]
    if cfg["records"] is not None:
        from diffpolicy_spec.control.jsonl import JsonLines

        made.append(JsonLines(cfg["records"]))
    if cfg["rerun"] is not None:
        from diffpolicy_spec.control.rerun_view import RerunView

        made.append(RerunView(save=cfg["rerun"], names=contract.axis_names, policy_hz=contract.control.policy_hz))
    return made


def node_of(cfg: Mapping[str, Any]) -> tuple[BridgeNode, list[Subscriber]]:
    """The node that settings describe, its loop not begun, and what has to be closed after it.

    Raises:
        ValueError, OSError, ImportError: what is wrong, and what to do.
    """
    contract = contract_of(cfg)
    wait = cfg["backoff_s"]
    if not isinstance(wait, list) or len(wait) != 2 or not 0 < wait[0] <= wait[1]:
        raise ValueError(f"backoff_s must be [first, longest], got {wait!r}")
    images = any(topic.type in IMAGE_TYPES for topic in contract.inputs)
    planner = planner_of(cfg, contract)
    listeners = listeners_of(cfg, contract)
    transport = RoslibTransport(
        str(cfg["url"]),
        contract.ros,
        headers={str(key): str(value) for key, value in (cfg["headers"] or {}).items()},
        tls_ca=cfg["tls_ca"],
        max_message_bytes=cfg["max_message_bytes"] or ((8 << 20) if images else (1 << 20)),
        ping_s=float(cfg["ping_s"]),
        pong_s=float(cfg["pong_s"]),
        backoff_s=(float(wait[0]), float(wait[1])),
    )
    return BridgeNode(contract, transport, planner, subscribers=listeners), listeners


def _shipped() -> list[str]:
    """Names of the policies in the package; `checkpoints` imports torch, which the loop's process does not need."""
    folder = Path(str(resources.files("diffpolicy_spec"))) / "shipped"
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def _flag(cfg: Mapping[str, Any], name: str) -> bool:
    if not isinstance(cfg[name], bool):
        raise ValueError(f"{name} must be true or false, got {cfg[name]!r}")
    return bool(cfg[name])


def _prepare(cfg: dict[str, Any]) -> tuple[BridgeNode, list[Subscriber], dict[str, Any]]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("twisted", "autobahn", "roslibpy"):  # what matters of the connection is told as a fault
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    # The loop takes the interpreter from a thread that reads large messages this soon.
    sys.setswitchinterval(SWITCH_S)
    node, listeners = node_of(cfg)
    return node, listeners, cfg


def _run(prepared: tuple[BridgeNode, list[Subscriber], dict[str, Any]]) -> None:
    node, listeners, cfg = prepared
    begins = "moves when the policy is ready" if node.contract.autostart else f"call {node.contract.services['start']}"
    print(f"dps-ros-bridge: {node.contract.name} at {cfg['url']}; {begins}", flush=True)
    try:
        node.run(cfg["duration"])
    except ValueError as error:
        sys.exit(f"dps-ros-bridge: {error}")
    finally:
        node.close()
        for listener in listeners:
            close = getattr(listener, "close", None)
            if close is not None:
                close()
    print(node.recorder.summary().text(), flush=True)


def main() -> None:
    """Entry point; the options are those of configs/ros_bridge.yaml."""
    command("dps-ros-bridge", "ros_bridge", "ros", _prepare, _run)


if __name__ == "__main__":
    main()
