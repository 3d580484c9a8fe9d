"""What makes chunks inside a planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from diffpolicy_spec.control.protocols import Failure, Plan, PlanRequest, PolicyInfo

__all__ = ["FunctionMaker", "Maker", "message_of"]


class Maker(Protocol):
    """Makes one chunk after the other. `policies.maker.PolicyMaker` is one."""

    @property
    def info(self) -> PolicyInfo:
        """Of the policy."""

    def make(self, request: PlanRequest) -> Plan:
        """The chunk; whatever it raises is told as the request's Failure."""

    def poll(self) -> Sequence[Failure]:
        """Called between chunks: what else has happened, such as that the checkpoint was replaced."""


class FunctionMaker:
    """A function PlanRequest -> Plan as a Maker."""

    def __init__(self, function: Callable[[PlanRequest], Plan], info: PolicyInfo) -> None:
        self._function, self.info = function, info

    def make(self, request: PlanRequest) -> Plan:
        """What the function says."""
        return self._function(request)

    def poll(self) -> Sequence[Failure]:
        """Nothing else happens."""
        return ()


def message_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__
