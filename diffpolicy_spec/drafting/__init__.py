"""Where the drafts of x0 come from. Any draft is exact as long as it does not depend on its own step's noise.

A drafter is a frozen description (`Parent`, `Nearest`, `Model`, `Picard`); `start` makes the state it keeps during one
call of the sampler: what it remembers of network outputs already paid for. Row i of a window is drafted from the noises
of earlier steps only, also where it re-uses outputs at states that were discarded: those depend on earlier noises, too.
"""

from .frozen import Nearest, Parent
from .model import Model
from .picard import Picard
from .protocol import Drafter, Running, SmallNetwork

__all__ = ["Drafter", "Model", "Nearest", "Parent", "Picard", "Running", "SmallNetwork"]
