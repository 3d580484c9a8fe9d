"""Checkpoints of robomimic's diffusion policy.

read     a file as Parts
config   observations and their encoder, the chain
actions  what actions mean and how they are normalised
"""

from diffpolicy_spec.checkpoints.robomimic.read import read_robomimic

__all__ = ["read_robomimic"]
