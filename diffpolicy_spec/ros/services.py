"""The node's services: std_srvs/Trigger each, as handlers of a transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from diffpolicy_spec.ros.transport import Message, ServiceHandler

__all__ = ["TRIGGER", "Controls", "handlers"]

TRIGGER = "std_srvs/Trigger"


class Controls(Protocol):
    """What can be asked of a node; each says what comes of it, or raises ValueError with why nothing does."""

    def start(self) -> str: ...

    def pause(self) -> str: ...

    def reset(self) -> str: ...

    def emergency_stop(self) -> str: ...


def handlers(controls: Controls) -> Mapping[str, ServiceHandler]:
    """Service -> its handler, the keys being `contract.SERVICES`."""

    def handler(act: Callable[[], str]) -> ServiceHandler:
        def handle(request: Message) -> Mapping[str, Any]:
            try:
                return {"success": True, "message": act()}
            except Exception as error:  # who calls gets an answer, whatever happens
                return {"success": False, "message": str(error) or type(error).__name__}

        return handle

    return {
        "start": handler(controls.start),
        "stop": handler(controls.pause),
        "reset": handler(controls.reset),
        "emergency_stop": handler(controls.emergency_stop),
    }
