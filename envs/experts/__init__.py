"""Scripted experts: controllers that solve a task from its observation, for recording demonstrations."""

from diffpolicy_spec.envs.experts.base import Expert, UnknownExpertError, make_expert

__all__ = ["Expert", "UnknownExpertError", "make_expert"]
