"""Demonstrations: files -> episodes in memory -> padded training sequences."""

from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.robomimic import read_robomimic
from diffpolicy_spec.data.sequences import Sequences, cut_sequences

__all__ = ["DataError", "Episode", "Sequences", "cut_sequences", "read_robomimic"]
