"""Fitting policies to demonstrations."""

from diffpolicy_spec.training.config import TrainConfig
from diffpolicy_spec.training.loop import train
from diffpolicy_spec.training.state import TrainingError

__all__ = ["TrainConfig", "TrainingError", "train"]
