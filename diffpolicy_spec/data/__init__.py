"""Demonstrations: files -> episodes in memory -> padded training sequences."""

from diffpolicy_spec.data.dataset import observation_shapes, read_dataset
from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.replay_buffer import read_replay_buffer, write_replay_buffer
from diffpolicy_spec.data.robomimic import read_robomimic
from diffpolicy_spec.data.sequences import Sequences, cut_sequences

__all__ = [
    "DataError",
    "Episode",
    "Sequences",
    "cut_sequences",
    "observation_shapes",
    "read_dataset",
    "read_replay_buffer",
    "read_robomimic",
    "write_replay_buffer",
]
