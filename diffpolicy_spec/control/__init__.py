"""Driving a robot with a policy: a loop of a fixed rate, chunks placed in time, a safety layer. Needs numpy only.

protocols  Robot and Planner, and what passes between them
config     ControlConfig, SafetyConfig
loop       ControlLoop; driver: one period of it; grid: its periods; signals: a clean stop
sensing    observations in time: clock_map, history
supply     chunks in time: requests, queue, blending
safety     what is sent instead of what is wanted
events     what a loop tells whoever listens; publisher: how; faults: what goes wrong
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
from diffpolicy_spec.control.loop import ControlLoop
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
    "ControlLoop",
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
