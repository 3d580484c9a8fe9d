"""Driving a robot with a policy: a loop of a fixed rate, chunks placed in time, a safety layer. Needs numpy only.

protocols  Robot and Planner, and what passes between them
config     ControlConfig, SafetyConfig
loop       ControlLoop; driver: one period of it; grid: its periods; signals: a clean stop
sensing    observations in time: clock_map, history
supply     chunks in time: requests, queue, blending
planning   ProcessPlanner, InlinePlanner: where chunks are made
safety     what is sent instead of what is wanted
events     what a loop tells whoever listens; publisher: how; faults: what goes wrong
records    Recorder, Summary: what a run was like; jsonl: a log; rerun_view: as it runs
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
from diffpolicy_spec.control.jsonl import JsonLines
from diffpolicy_spec.control.lines import read_records
from diffpolicy_spec.control.loop import ControlLoop
from diffpolicy_spec.control.planning import InlinePlanner, ProcessPlanner
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
from diffpolicy_spec.control.records import Recorder, Summary
from diffpolicy_spec.control.rerun_view import RerunView
from diffpolicy_spec.control.timing import MEANWHILE, Slice, hold_action, next_actions, steps_waited

__all__ = [
    "MEANWHILE",
    "ChunkArrived",
    "ControlConfig",
    "ControlLoop",
    "Failure",
    "Fault",
    "InlinePlanner",
    "Intervention",
    "JsonLines",
    "LoopStarted",
    "LoopStopped",
    "Observation",
    "Plan",
    "PlanCost",
    "PlanRequest",
    "Planner",
    "PolicyInfo",
    "ProcessPlanner",
    "Recorder",
    "RerunView",
    "Robot",
    "SafetyConfig",
    "Slice",
    "Subscriber",
    "Summary",
    "Tick",
    "hold_action",
    "next_actions",
    "read_records",
    "steps_waited",
]
