"""Small policies whose network is exact and costs what a test says, and a clock that no other load moves."""

import time
from contextlib import contextmanager

import pytest
import torch
from tiny_policy import SCHEDULER, tiny_obs, tiny_policy

from diffpolicy_spec.choice.timing import Moments
from diffpolicy_spec.scheduler_settings import training_abar

STEPS = 12


class KnownTime:
    """A clock that goes on by what a network is said to take, and by a microsecond whenever it is read."""

    def __init__(self):
        self._now = 0.0

    def perf_counter(self):
        self._now += 1e-6
        return self._now

    def sleep(self, seconds):
        self._now += seconds


@contextmanager
def known_time():
    """What is measured meanwhile is what the networks below are said to take, however loaded the machine is."""
    clock = KnownTime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffpolicy_spec.clock.time", clock)
        patch.setattr(f"{__name__}.time", clock)
        yield clock


class Known(torch.nn.Module):
    """The exact denoiser of actions ~ N(0.3, width^2 I); a call for one robot takes `call` + rows * `row` seconds."""

    def __init__(self, width, call, row):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))  # tells the policy where it is
        self.abar = torch.from_numpy(training_abar(SCHEDULER)).float()
        self.width, self.call, self.row = width, call, row

    def seconds(self, rows):
        return self.call + self.row * rows

    def forward(self, x, t, condition):
        if len(x) <= STEPS:  # not where many chains are counted at once
            time.sleep(self.seconds(len(x)))
        abar = self.abar[t][:, None, None]
        gain = abar.sqrt() * self.width**2 / (abar * self.width**2 + 1 - abar)
        x0 = 0.3 + gain * (x - abar.sqrt() * 0.3)
        return (x - abar.sqrt() * x0) / (1 - abar).sqrt()


def known_policy(width=0.1, call=0.0, row=0.0):
    policy = tiny_policy()
    policy.network = Known(width, call, row)
    return policy


def moments(n=6):
    plans = torch.zeros(n, 16, 10)
    plans[::2] = torch.nan
    return Moments({key: torch.from_numpy(value) for key, value in tiny_obs(n).items()}, plans)
