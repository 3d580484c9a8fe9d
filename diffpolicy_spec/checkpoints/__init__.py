"""Checkpoints: reading and writing policies.

shipped           `load_policy`: any checkpoint by its path, or one that comes with the package by its name
formats           which format a file or folder has, and its reader
parts             what each reader returns, and the policy made of it; weights: the parameters put into networks
native            this package's own folder; tensors: its safetensors files, and LeRobot's
diffusion_policy  .ckpt files of diffusion_policy
lerobot           LeRobot's folders, read and written
robomimic         robomimic's .pth files
pickles           files of torch.save, read without unpickling
fields            settings of a stranger's configuration, checked one by one
encoder_names     names of image encoders' parameters, which three projects share
shapes_only       reading without the weights
"""

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.formats import detect, read_parts
from diffpolicy_spec.checkpoints.lerobot import write_lerobot
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
