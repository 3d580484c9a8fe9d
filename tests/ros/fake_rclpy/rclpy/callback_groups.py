"""Callback groups."""

import threading


class MutuallyExclusiveCallbackGroup:
    """Its callbacks never run at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
