"""What `accelerate` refuses."""

from __future__ import annotations

__all__ = ["SUPPORTED", "AccelerateError"]

SUPPORTED = (
    "LeRobot's DiffusionPolicy; diffusion_policy's DiffusionUnetLowdimPolicy, DiffusionUnetImagePolicy, "
    "DiffusionUnetHybridImagePolicy, DiffusionTransformerLowdimPolicy and DiffusionTransformerHybridImagePolicy; "
    "robomimic's DiffusionPolicyUNet and the RolloutPolicy around it"
)
"""Live objects that are known, in words."""


class AccelerateError(TypeError):
    """A live policy whose sampling loop cannot be replaced, or cannot be replaced the way that is asked for."""
