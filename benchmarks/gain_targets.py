"""Large chunks whose denoiser is known: mixtures of Gaussian processes, as a network or to train one on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec import Denoise, Schedule
from diffpolicy_spec.policies.unet import ConditionalUnet1D

__all__ = ["ProcessMixture", "process_mixture", "train_unet"]


@dataclass(frozen=True, eq=False)
class ProcessMixture:
    """sum_i 1/M N(means_i, V_i diag(values_i) V_i') over chunks (Tp, Da), D = Tp Da.

    Attributes:
        chunk: (Tp, Da).
        means: (M, D).
        values, vectors: (M, D) and (M, D, D) eigenvalues and eigenvectors of the covariances.
    """

    chunk: tuple[int, int]
    means: Tensor
    values: Tensor
    vectors: Tensor

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, Tp, Da)."""
        mode = torch.randint(len(self.means), (n,), generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator)
        x = torch.stack([self.means[i] + (self.values[i].sqrt() * z[j]) @ self.vectors[i].T
                         for j, i in enumerate(mode.tolist())])  # fmt: skip
        return x.view(n, *self.chunk)

    def denoiser(self, schedule: Schedule) -> Denoise:
        """E[x0 | x_t] of every row; the schedule must have prediction_type "sample"."""
        abar_of = torch.zeros(schedule.num_train_timesteps)
        abar_of[schedule.timesteps] = schedule.abar.float()

        def denoise(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
            flat, abar = x.flatten(1), abar_of[t][:, None]
            logs, x0 = [], []
            for mean, values, vectors in zip(self.means, self.values, self.vectors, strict=True):
                y = (flat - abar.sqrt() * mean) @ vectors
                variance = abar * values + 1 - abar
                logs.append(-0.5 * (y.square() / variance + variance.log()).sum(-1))
                x0.append(mean + (abar.sqrt() * values / variance * y) @ vectors.T)
            share = torch.softmax(torch.stack(logs, -1), -1)
            return (share[:, None] * torch.stack(x0, -1)).sum(-1).view_as(x)

        return denoise


def process_mixture(Tp: int, Da: int, seed: int = 0, modes: int = 3) -> ProcessMixture:
    """Plans that are smooth in time at several length scales, spread as they go on, with joints that move together.

    Each mode adds latent processes, each with a length scale of its own and with shares of the joints that turn along
    the plan, and one process per joint: not a Kronecker product of time and action, nor a sum of few. One mode is
    wider than the others. Normalised actions: standard deviation 0.3, 0.01 of it white.
    """
    g = torch.Generator().manual_seed(seed)
    time, D, latents = torch.linspace(0, 1, Tp, dtype=torch.float64), Tp * Da, max(2, Da // 2)
    apart = (time[:, None] - time).square()
    spread = (0.2 + time).sqrt()
    means, values, vectors = [], [], []
    for mode in range(modes):
        cov = torch.zeros(Tp, Da, Tp, Da, dtype=torch.float64)
        for q in range(latents):
            length = 0.08 + 0.5 * q / latents
            kernel = torch.exp(-apart / (2 * length**2)) * spread[:, None] * spread
            begin, turn = torch.randn(2, Da, generator=g, dtype=torch.float64) / latents**0.5
            share = begin + time[:, None] * turn
            cov += torch.einsum("st,sa,tc->satc", kernel, share, share)
        for joint in range(Da):
            length = 0.05 + 0.2 * joint / Da
            cov[:, joint, :, joint] += 0.1 * torch.exp(-apart / (2 * length**2))
        flat = cov.reshape(D, D)
        flat *= (1.0 if mode == 0 else 0.3) * 0.3**2 * D / flat.trace()
        found = torch.linalg.eigh(flat + 0.01**2 * torch.eye(D, dtype=torch.float64))
        slope, swing = torch.randn(2, Da, generator=g, dtype=torch.float64)
        phase = 6 * torch.rand(Da, generator=g, dtype=torch.float64)
        mean = 0.25 * (slope * time[:, None] + swing * torch.sin(3 * time[:, None] + phase))
        means.append(mean.reshape(D).float())
        values.append(found.eigenvalues.float())
        vectors.append(found.eigenvectors.float())
    return ProcessMixture((Tp, Da), torch.stack(means), torch.stack(values), torch.stack(vectors))


def train_unet(target: ProcessMixture, schedule: Schedule, steps: int, seed: int = 0) -> tuple[Denoise, float]:
    """A small U-Net that predicts epsilon, trained briefly on samples of the target; and its last mean loss."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    network = ConditionalUnet1D(target.chunk[1], 0, diffusion_step_embed_dim=64, down_dims=(32, 64, 128))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    data, abar, losses = target.sample(4096, g), schedule.abar.float(), []
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (64,), generator=g)]
        k = torch.randint(schedule.num_steps, (64,), generator=g)
        epsilon = torch.randn(x0.shape, generator=g)
        noisy = abar[k].sqrt()[:, None, None] * x0 + (1 - abar[k]).sqrt()[:, None, None] * epsilon
        loss = (network(noisy, schedule.timesteps[k]) - epsilon).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(float(loss.detach()))
    network.eval().requires_grad_(False)

    def denoise(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x, t)

    return denoise, sum(losses[-20:]) / len(losses[-20:])
