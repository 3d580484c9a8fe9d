"""What the checkpoint readers raise, and how they quote a file."""

from __future__ import annotations

__all__ = ["CheckpointError", "printable"]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another format, or does not fit its own configuration."""


def printable(text: str, limit: int = 80) -> str:
    """A stranger's text for a message: at most so many printable ASCII characters."""
    plain = text[:limit].encode("ascii", "backslashreplace").decode()
    plain = "".join(c if c.isprintable() else "?" for c in plain)
    return plain if len(text) <= limit and len(plain) <= limit else plain[: limit - 3] + "..."
