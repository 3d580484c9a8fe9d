"""What stops a run, and how often something that died is tried again."""

from __future__ import annotations

from collections import Counter

__all__ = ["MOST_TRIES", "EpisodeLostError", "Retries", "RunError"]

MOST_TRIES = 3
"""Processes that may die over one episode before the run stops."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says what to do. What was finished is stored."""


class EpisodeLostError(RunError):
    """Every process that took up an episode died."""


class Retries:
    """Counts, per episode, the processes that died over it.

    Args:
        most: after so many the run stops.
    """

    def __init__(self, most: int = MOST_TRIES) -> None:
        self._most = most
        self._deaths: Counter[object] = Counter()

    def died(self, episode: object, seed: int, how: str) -> None:
        """Note a death.

        Raises:
            EpisodeLostError: it was the last try.
        """
        self._deaths[episode] += 1
        if self._deaths[episode] >= self._most:
            raise EpisodeLostError(
                f"{self._most} processes died over the episode with seed {seed}, the last one {how}. Look at the "
                "memory that is free (fewer num_workers or num_envs need less); finished episodes are stored, and "
                "the same command goes on from there"
            )
