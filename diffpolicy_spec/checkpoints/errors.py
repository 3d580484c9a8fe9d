"""What the checkpoint readers raise."""

from __future__ import annotations

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another format, or does not fit its own configuration."""
