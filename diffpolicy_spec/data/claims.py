"""What a file claims to hold against what it is: a few bytes may not ask for gigabytes."""

from __future__ import annotations

from diffpolicy_spec.data.errors import DataError

__all__ = ["FREE_BYTES", "RATIO", "check_claim"]

FREE_BYTES = 64 << 20
"""Claims up to here are believed: arrays of one value compress to almost nothing."""

RATIO = 1100
"""More than deflate can reach (1032)."""


def check_claim(claimed: int, stored: int, where: str) -> None:
    """Raise DataError where `claimed` bytes are to come out of `stored` ones and cannot.

    An array beyond FREE_BYTES of which less than 1/RATIO is stored would be one constant, which no recording is; read
    from a damaged or hostile file it would take all memory.
    """
    if claimed > FREE_BYTES and claimed > RATIO * stored:
        raise DataError(f"{where} claims {claimed / 1e6:,.0f} MB, of which only {stored:,} bytes are stored: damaged?")
