"""What the tests of the choice share."""

import pytest
from known_policy import known_time as run_on_known_time


@pytest.fixture
def known_time():
    """The clock of a test: see `known_policy.known_time`."""
    with run_on_known_time() as clock:
        yield clock
