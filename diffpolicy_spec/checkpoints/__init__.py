"""Checkpoints: reading and writing policies."""

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.formats import detect, read_parts
from diffpolicy_spec.checkpoints.lerobot_write import write_lerobot
from diffpolicy_spec.checkpoints.native import load_native, save_policy, save_speculation
from diffpolicy_spec.checkpoints.parts import Parts, build_policy
from diffpolicy_spec.checkpoints.shipped import load_policy, shipped_names

__all__ = [
    "CheckpointError",
    "Parts",
    "build_policy",
    "detect",
    "load_native",
    "load_policy",
    "read_parts",
    "save_policy",
    "save_speculation",
    "shipped_names",
    "write_lerobot",
]
