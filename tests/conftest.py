"""One torch thread in every test: two busy-waiting threads are far slower on a loaded machine."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
