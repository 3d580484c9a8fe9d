"""LeRobot's policy folders, read and written.

read          a folder as Parts: config.json and weights
names         names of tensors, both ways
statistics    its normalisation as this package's; processors: the files that newer releases keep it in
write         a policy as a folder; write_config: its config.json
"""

from diffpolicy_spec.checkpoints.lerobot.read import read_lerobot
from diffpolicy_spec.checkpoints.lerobot.write import lerobot_losses, write_lerobot

__all__ = ["lerobot_losses", "read_lerobot", "write_lerobot"]
