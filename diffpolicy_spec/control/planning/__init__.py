"""Planners: where a loop's chunks are made.

process  `ProcessPlanner`, a policy in a process of its own; worker: what runs there
inline   `InlinePlanner`, a policy or a function in a thread
maker    what makes chunks inside them; desk: requests in, answers out; framing: messages between processes
"""

from diffpolicy_spec.control.planning.inline import InlinePlanner
from diffpolicy_spec.control.planning.maker import Maker
from diffpolicy_spec.control.planning.process import ProcessPlanner

__all__ = ["InlinePlanner", "Maker", "ProcessPlanner"]
