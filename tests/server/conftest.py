"""Servers of a real but tiny policy, on ports that the system picks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from policy_servers import Gate, serving

sys.path.append(str(Path(__file__).parent.parent / "control"))  # faults_proxy


@pytest.fixture(scope="module")
def server():
    with serving() as one:
        yield one


@pytest.fixture
def gated():
    """(server, gate), of a server whose policy is held up on demand."""
    with serving(max_chains=1) as one:
        gate = Gate(one)
        yield one, gate
        gate.open()
