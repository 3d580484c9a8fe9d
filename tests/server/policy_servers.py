"""Servers of a real but tiny policy, of 10 denoising steps, on ports that the system picks."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
from tiny_policy import OBS_DIMS, SCHEDULER, tiny_policy
from websockets.sync.client import connect

from diffpolicy_spec.server.codec import pack, unpack
from diffpolicy_spec.server.messages import SUBPROTOCOL

TEN_STEPS = SCHEDULER | {"num_train_timesteps": 10}
TOKEN = "correct-horse-battery"


def served_policy(seed: int = 0, **changes):
    return tiny_policy(seed, scheduler=TEN_STEPS, **changes)


def observation(seed: int = 0, steps: int | None = 2) -> dict[str, np.ndarray]:
    """Of one robot: (To, d) each, or (d,) where steps is None."""
    rng = np.random.default_rng(seed)
    shape = () if steps is None else (steps,)
    return {key: rng.normal(2, 3, size=(*shape, d)) for key, d in OBS_DIMS.items()}


@contextlib.contextmanager
def serving(policy=None, sampler=None, **settings):
    """A server in this process; settings of ServerConfig, limits={...} of Limits."""
    from diffpolicy_spec.server import Limits, PolicyServer, ServerConfig

    limits = Limits(**settings.pop("limits", {}))
    config = ServerConfig(port=0, limits=limits, **({"drain_s": 5.0} | settings))
    server = PolicyServer(served_policy() if policy is None else policy, config, sampler)
    server.start(60)
    try:
        yield server
    finally:
        server.stop(drain=False)


class Gate:
    """Holds a server's sampler before its next network call."""

    def __init__(self, server) -> None:
        self._open, self.reached = threading.Event(), threading.Event()
        self._open.set()
        engine = server._engine._engine
        step = engine.step

        def gated():
            self.reached.set()
            assert self._open.wait(30)
            return step()

        engine.step = gated

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()


def total(server, name: str, **labels: str) -> float:
    """A counter's value."""
    return server.metrics._registry.get_sample_value(f"dps_{name}", labels) or 0.0


def until(condition, seconds: float = 10.0) -> None:
    """Wait for what another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def raw(server, **options):
    """A connection without a client; the server's first message is read."""
    options = {"subprotocols": [SUBPROTOCOL], "compression": None, "proxy": None, "close_timeout": 0.5} | options
    with connect(server.url, **options) as socket:
        assert unpack(socket.recv(5))["type"] == "policy"
        yield socket


def ask(socket, message) -> None:
    """Send a message, or whatever bytes."""
    socket.send(message if isinstance(message, bytes | str) else pack(message))


def answer(socket):
    """The next message."""
    return unpack(socket.recv(10))
