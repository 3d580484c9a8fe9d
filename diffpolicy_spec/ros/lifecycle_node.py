"""The bridge node under ROS 2 itself: a lifecycle node, without rosbridge.

    python -m diffpolicy_spec.ros.lifecycle_node --ros-args -p contract:=arm.yaml -p policy:=outputs/policy
    ros2 lifecycle set /policy_bridge configure
    ros2 lifecycle set /policy_bridge activate

configure    reads the contract, subscribes, offers services, loads the policy or connects to its server
activate     begins the control loop; chunks are executed after the service `start`, or at once with `autostart`
deactivate   the robot comes to rest within its limits, and nothing more is sent
cleanup      lets go of all that
shutdown     the same, and the process ends

SIGINT and SIGTERM do as shutdown does, and a second one is the emergency stop.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from diffpolicy_spec.control.signals import stop_on_signals
from diffpolicy_spec.optional import require
from diffpolicy_spec.ros.cli import SWITCH_S, contract_of, listeners_of, planner_of
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.rclpy_transport import RclpyTransport, ros2_module

__all__ = ["PARAMETERS", "lifecycle_node_class", "main", "settings_of"]

PARAMETERS: Mapping[str, Any] = {
    "contract": "",
    "policy": "lift",
    "weights": "auto",
    "device": "cpu",
    "num_threads": 1,
    "server": "",
    "server_tls_ca": "",
    "records": "",
    "autostart": False,
    "settings": [""],
}
"""Of the node, and their defaults: as in configs/ros_bridge.yaml, "" for null; autostart false: as the contract says.
`settings`: more of that file, as ["nice=0", "sampler=ddim10"]."""

WATCH_S = 0.5
ANSWER_S = 0.2
"""Until the process ends: who asked for the shutdown gets an answer."""


def settings_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that parameters stand for, see configs/ros_bridge.yaml.

    Raises:
        ValueError: no contract, or a setting there is not.
        ImportError: hydra is not installed.
    """
    if not parameters["contract"]:
        raise ValueError("parameter contract is missing: a YAML file, as -p contract:=arm.yaml")
    hydra = require("hydra", "ros", "the node")
    omegaconf = require("omegaconf", "ros", "the node")
    with hydra.initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        try:
            composed = hydra.compose("ros_bridge", [text for text in parameters["settings"] if text])
        except Exception as error:  # hydra's errors have no base of their own
            raise ValueError(f"parameter settings: {' '.join(str(error).split())}") from None
    settings: dict[str, Any] = omegaconf.OmegaConf.to_container(composed, resolve=True)
    for name, value in parameters.items():
        if name == "autostart":
            settings[name] = True if value else settings[name]
        elif name != "settings" and value != PARAMETERS[name]:
            settings[name] = value
    return settings


def lifecycle_node_class() -> Any:
    """The node's class; made here because its base is rclpy's.

    Raises:
        ImportError: ROS 2 is not there.
    """
    lifecycle = ros2_module("rclpy.lifecycle")
    done = lifecycle.TransitionCallbackReturn

    class PolicyNode(lifecycle.LifecycleNode):  # type: ignore[name-defined]
        """See the module. `bridge`: the node core while it is configured; `finished`: whether it was shut down."""

        def __init__(self, node_name: str = "policy_bridge", **more: Any) -> None:
            super().__init__(node_name, **more)
            self.bridge: BridgeNode | None = None
            self.finished = threading.Event()
            self._listeners: list[Any] = []
            self._watch: Any = None
            for name, default in PARAMETERS.items():
                self.declare_parameter(name, default)

        def on_configure(self, state: Any) -> Any:
            parameters = {name: self.get_parameter(name).value for name in PARAMETERS}
            try:
                settings = settings_of(parameters)
                contract = contract_of(settings)
                if contract.ros != 2:
                    raise ValueError(f"{contract.source}: ros is {contract.ros}, and this is a node of ROS 2")
                planner = planner_of(settings, contract)
                self._listeners = listeners_of(settings, contract)
                self.bridge = BridgeNode(contract, RclpyTransport(self), planner, subscribers=self._listeners)
                planner.start()  # it warms up while the node is inactive
            except Exception as error:  # rclpy itself would not say what it was
                expected = isinstance(error, ValueError | OSError | ImportError)
                self.get_logger().error(str(error) if expected else traceback.format_exc())
                self.let_go()
                return done.FAILURE
            return done.SUCCESS

        def on_activate(self, state: Any) -> Any:
            assert self.bridge is not None
            self.bridge.begin()
            self._watch = self.create_timer(WATCH_S, self._look)
            contract = self.bridge.contract
            if not contract.autostart:
                self.get_logger().info(f"call {contract.services['start']} to have the policy move the robot")
            return done.SUCCESS

        def on_deactivate(self, state: Any) -> Any:
            assert self.bridge is not None
            self._stop_watching()
            self.bridge.end("deactivated")
            with suppress(ValueError):  # the watch has told it
                if not self.bridge.wait(self.bridge.longest_stop):
                    self.get_logger().error("the control loop does not end")
                    return done.FAILURE
            return done.SUCCESS

        def on_cleanup(self, state: Any) -> Any:
            self.let_go()
            return done.SUCCESS

        def on_error(self, state: Any) -> Any:
            self.let_go()
            return done.SUCCESS

        def on_shutdown(self, state: Any) -> Any:
            self.let_go()
            self.finished.set()
            return done.SUCCESS

        def let_go(self) -> None:
            """Come to rest, and close everything. Again: does nothing."""
            self._stop_watching()
            bridge, self.bridge = self.bridge, None
            if bridge is not None:
                bridge.close()
            listeners, self._listeners = self._listeners, []
            for listener in listeners:
                if hasattr(listener, "close"):
                    listener.close()

        def _look(self) -> None:
            """A loop that ended by itself says why, and the node is active no more."""
            bridge = self.bridge
            if bridge is None or bridge.loop.state != "idle":
                return
            why = "the control loop has ended"
            try:
                bridge.wait(0)
            except Exception as error:
                why = f"{why}: {error}"
            self.get_logger().error(why)
            self.trigger_deactivate()

        def _stop_watching(self) -> None:
            watch, self._watch = self._watch, None
            if watch is not None:
                self.destroy_timer(watch)

    return PolicyNode


class _Ending:
    """What a signal does to the process."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def stop(self, reason: str = "asked to") -> None:
        """Go on with the end of `main`."""
        self._node.finished.set()

    def emergency_stop(self, reason: str = "asked to") -> None:
        """Of the loop, if there is one."""
        bridge = self._node.bridge
        if bridge is not None:
            bridge.loop.emergency_stop(reason)


def main(args: Sequence[str] | None = None) -> None:
    """Make the node and spin it, until it is shut down or a signal comes.

    Args:
        args: with ROS's own after --ros-args; None: the process's.
    """
    try:
        rclpy, signals, executors = (ros2_module(f"rclpy{name}") for name in ("", ".signals", ".executors"))
    except ImportError as error:
        sys.exit(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.setswitchinterval(SWITCH_S)
    # rclpy's own handlers end all communication at once: the robot would be left where a chunk has brought it.
    rclpy.init(args=list(sys.argv if args is None else args), signal_handler_options=signals.SignalHandlerOptions.NO)
    node = lifecycle_node_class()()
    executor = executors.MultiThreadedExecutor(num_threads=2)  # observations come during transitions, too
    executor.add_node(node)

    def spin() -> None:
        with suppress(executors.ExternalShutdownException):
            executor.spin()

    spinning = threading.Thread(target=spin, name="executor", daemon=True)
    with stop_on_signals(_Ending(node)):
        spinning.start()
        while not node.finished.wait(0.2) and rclpy.ok() and spinning.is_alive():
            pass
        node.let_go()
    time.sleep(ANSWER_S)
    executor.shutdown()
    rclpy.try_shutdown()
    spinning.join(5)
    node.destroy_node()


if __name__ == "__main__":
    main()
