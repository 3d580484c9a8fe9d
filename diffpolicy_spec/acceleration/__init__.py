"""Live policies of other projects made to sample exactly and fast: `accelerate`, and `DenoisingLoop` for any class.

    attach.py     accelerate, decelerate, accelerated: in place, reversible
    families.py   the objects that are known, and what stands in the place of their loops
    sampling.py   chunks of a live policy: its network, its chain, a sampler between them
    chain.py      the chain that a live scheduler runs, checked against its own steps
    shared.py     our network on the parameters of a live one
    as_it_is.py   a live network without one of ours
    stored.py     what calibration has found for it
    loop.py       the diffusers-facing form

Objects are recognised by the names of their classes; none of the other projects is imported.
"""

from .attach import accelerate, accelerated, decelerate
from .errors import AccelerateError
from .loop import DenoisingLoop

__all__ = ["AccelerateError", "DenoisingLoop", "accelerate", "accelerated", "decelerate"]
