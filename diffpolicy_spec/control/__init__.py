"""Driving a robot with a policy: a loop of a fixed rate, chunks placed in time, a safety layer. Needs numpy only.

protocols  Robot and Planner, and what passes between them
config     ControlConfig, SafetyConfig
events     what a loop tells whoever listens
timing     chunks on a grid of control steps
"""

from diffpolicy_spec.control.config import ControlConfig, SafetyConfig
from diffpolicy_spec.control.events import (
    ChunkArrived,
    Fault,
    Intervention,
    LoopStarted,
    LoopStopped,
    Subscriber,
    Tick,
)
from diffpolicy_spec.control.protocols import (
    Failure,
    Observation,
    Plan,
    PlanCost,
    Planner,
    PlanRequest,
    PolicyInfo,
    Robot,
)
from diffpolicy_spec.control.timing import MEANWHILE, Slice, hold_action, next_actions, steps_waited

__all__ = [
    "MEANWHILE",
    "ChunkArrived",
    "ControlConfig",
    "Failure",
    "Fault",
    "Intervention",
    "LoopStarted",
    "LoopStopped",
    "Observation",
    "Plan",
    "PlanCost",
    "PlanRequest",
    "Planner",
    "PolicyInfo",
    "Robot",
    "SafetyConfig",
    "Slice",
    "Subscriber",
    "Tick",
    "hold_action",
    "next_actions",
    "steps_waited",
]
