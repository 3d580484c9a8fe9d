"""Callback groups: here one thread calls all, so they are names only."""


class MutuallyExclusiveCallbackGroup:
    """Its callbacks never run at once."""
