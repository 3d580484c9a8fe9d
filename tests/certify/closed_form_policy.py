"""A policy whose network is the exact denoiser of a mixture: real chains, milliseconds a chunk."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from closed_form import Mixture

from diffpolicy_spec import Schedule, bind

SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "clip_sample": True,
             "clip_sample_range": 2.0}  # fmt: skip
HORIZON, ACTION_DIM = 4, 2


class ClosedFormPolicy:
    """Two narrow, unequal modes in chunks of 4 x 2, moved along the first coordinate by the condition (O, 1)."""

    def __init__(self, steps: int = 30) -> None:
        generator = torch.Generator().manual_seed(3)
        D = HORIZON * ACTION_DIM
        root = 0.1 * torch.eye(D) + 0.03 * torch.randn(D, D, generator=generator)
        way = torch.ones(D) / D**0.5
        self.mixture = Mixture(
            torch.tensor([0.4, 0.6], dtype=torch.float64),
            torch.stack([-way, way]).double(),
            torch.stack([(root @ root.T).double(), 0.03**2 * torch.eye(D, dtype=torch.float64)]),
        )
        self.scheduler = {**SCHEDULER, "num_train_timesteps": steps}
        self.schedule = Schedule.from_diffusers(self.scheduler)
        self.config = SimpleNamespace(horizon=HORIZON, action_dim=ACTION_DIM, n_action_steps=2)
        self.device = torch.device("cpu")

    def bind(self, config):
        return bind(config, self.scheduler)

    def denoiser(self, condition):
        inner = self.mixture.denoiser(self.schedule)
        root = torch.empty(self.schedule.num_steps)
        root[self.schedule.timesteps] = self.schedule.abar.sqrt().float()
        move = torch.zeros(len(condition), HORIZON, ACTION_DIM)
        move[:, 0, 0] = condition[:, 0]

        def denoise(x, t, chain):
            moved = move[chain]
            return inner(x - root[t].view(-1, 1, 1) * moved, t, chain) + moved

        return denoise


CONDITIONS = torch.tensor([[0.0], [0.4]])
