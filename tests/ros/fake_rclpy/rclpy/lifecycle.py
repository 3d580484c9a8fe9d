"""Lifecycle nodes: the states of design.ros2.org/articles/node_lifecycle.html."""

from __future__ import annotations

from concurrent.futures import Future
from enum import Enum
from typing import Any, NamedTuple

from rclpy.node import Node as _Node


class TransitionCallbackReturn(Enum):
    SUCCESS = "transition_success"
    FAILURE = "transition_failure"
    ERROR = "transition_error"


class LifecycleState(NamedTuple):
    label: str
    state_id: int


_TRANSITIONS = {
    "configure": ("unconfigured", "inactive"),
    "cleanup": ("inactive", "unconfigured"),
    "activate": ("inactive", "active"),
    "deactivate": ("active", "inactive"),
}


class LifecycleNode(_Node):
    """A node with states; `state` is the label of the present one."""

    def __init__(self, node_name: str, **more: Any) -> None:
        self.state = "unconfigured"
        super().__init__(node_name, **more)

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    on_cleanup = on_activate = on_deactivate = on_shutdown = on_error = on_configure

    def trigger_configure(self) -> TransitionCallbackReturn:
        return self._change("configure")

    def trigger_cleanup(self) -> TransitionCallbackReturn:
        return self._change("cleanup")

    def trigger_activate(self) -> TransitionCallbackReturn:
        return self._change("activate")

    def trigger_deactivate(self) -> TransitionCallbackReturn:
        return self._change("deactivate")

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        result = self._call("on_shutdown")
        self.state = "finalized"
        return result

    def change_state(self, name: str) -> TransitionCallbackReturn:
        """What the service change_state does: in the executor; waits for the result (for tests)."""
        future: Future[TransitionCallbackReturn] = Future()

        def run() -> None:
            try:
                future.set_result(getattr(self, f"trigger_{name}")())
            except RuntimeError as error:
                future.set_exception(error)

        self.do(run)
        return future.result(30)

    def _change(self, name: str) -> TransitionCallbackReturn:
        begin, end = _TRANSITIONS[name]
        if self.state != begin:
            raise RuntimeError(f"no transition {name} from {self.state}")
        result = self._call(f"on_{name}")
        if result is TransitionCallbackReturn.SUCCESS:
            self.state = end
        elif result is TransitionCallbackReturn.ERROR:
            recovered = self._call("on_error") is TransitionCallbackReturn.SUCCESS
            self.state = "unconfigured" if recovered else "finalized"
        return result

    def _call(self, name: str) -> TransitionCallbackReturn:
        try:
            return getattr(self, name)(LifecycleState(self.state, 0))
        except Exception:
            return TransitionCallbackReturn.ERROR


Node, State = LifecycleNode, LifecycleState
