"""What a command must never be: limits, guards, the watchdog, the emergency stop. Knows nothing of policies.

core       Safety: what is sent instead of what is wanted
filter     commands within limits of position, velocity, acceleration and jerk
braking    coming to rest within them, in closed form
limits     what the axes are and how far and fast they may go
guards     what is no action and no observation
telling    interventions, counted each time and told now and then
watchdog   a command at least so often, whoever hangs
"""

from diffpolicy_spec.control.safety.core import Command, Safety
from diffpolicy_spec.control.safety.filter import LimitFilter, Motion
from diffpolicy_spec.control.safety.limits import Limits
from diffpolicy_spec.control.safety.watchdog import Watchdog

__all__ = ["Command", "LimitFilter", "Limits", "Motion", "Safety", "Watchdog"]
