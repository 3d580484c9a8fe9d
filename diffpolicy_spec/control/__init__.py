"""Executing chunks in time: which actions are left of a chunk that took a while."""

from diffpolicy_spec.control.timing import MEANWHILE, Slice, hold_action, next_actions, steps_waited

__all__ = ["MEANWHILE", "Slice", "hold_action", "next_actions", "steps_waited"]
