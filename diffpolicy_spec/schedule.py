"""The denoising chain as tables: every reverse step is x' = A m + B x + sigma xi with m the predicted x0.

Conventions are those of `diffusers.DDPMScheduler` and `diffusers.DDIMScheduler`. Steps are numbered in sampling order,
k = 0 (noisiest) ... K - 1 (last); `timesteps[k]` is the training timestep the network is given at step k.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .scheduler_settings import (
    ScheduleError,
    read_settings,
    rounded_as_0_11,
    spaced_timesteps,
    training_abar,
    training_betas,
)

__all__ = ["Schedule", "ScheduleError", "StepTables"]

# Variances below this are diffusers' clamp (1e-20) or rounding: the step is deterministic.
_NO_NOISE = 1e-16


@dataclass(frozen=True, eq=False)
class StepTables:
    """The tables in float32 on one device, with what a drafted window needs precomputed.

    Attributes:
        timesteps: (K,) long.
        A, B, sigma, abar: (K,).
        shift: (K,) A / sigma, the size of v = (mu_draft - mu_target) / sigma per unit of x0; 0 where sigma is 0.
        x0_of_x, x0_of_prediction: (K,) unclipped x0 = x0_of_x x + x0_of_prediction prediction.
        clipped, unclipped: (K,) the weights V and W of `Schedule.predict_x0`.
        decay: (K, K) decay[j, i] = prod_{l=i}^{j-1} B_l for j >= i: what is left of state i in state j.
        response: (K, K) strictly lower triangular, response[j, i] = prod_{l=i+1}^{j-1} B_l: what the input
            A_i m_i + sigma_i xi_i of step i contributes to state j.
    """

    timesteps: Tensor
    A: Tensor
    B: Tensor
    sigma: Tensor
    abar: Tensor
    shift: Tensor
    x0_of_x: Tensor
    x0_of_prediction: Tensor
    clipped: Tensor
    unclipped: Tensor
    decay: Tensor
    response: Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """A chain of K reverse steps, in float64.

        x_{k+1} = A_k m_k(x_k) + B_k x_k + sigma_k xi_k,   xi_k ~ N(0, I),   m_k = `predict_x0`

    DDPM: A = sqrt(abar_prev) beta / (1 - abar), B = sqrt(alpha) (1 - abar_prev) / (1 - abar), alpha = abar / abar_prev,
    beta = 1 - alpha; sigma^2 = beta (1 - abar_prev) / (1 - abar) (fixed_small) or beta (fixed_large).
    DDIM: sigma = eta times the fixed_small one, c = sqrt(1 - abar_prev - sigma^2), B = c / sqrt(1 - abar),
    A = sqrt(abar_prev) - sqrt(abar) B.

    Attributes:
        timesteps: (K,) long, largest first.
        A, B, sigma, abar: (K,) float64.
        kind: "ddpm" or "ddim".
        eta: DDIM's eta; 1.0 for a DDPM chain.
        prediction_type: "epsilon", "sample" or "v_prediction".
        clip: x0 is clipped to [-clip, clip]; None for no clipping.
        threshold: (ratio, maximum) of dynamic thresholding, per row; None for none. Replaces clipping.
        clipped, unclipped: (K,) float64, the weights V and W of `predict_x0`.
        num_train_timesteps: length of the training chain.
    """

    timesteps: Tensor
    A: Tensor
    B: Tensor
    sigma: Tensor
    abar: Tensor
    kind: str
    eta: float
    prediction_type: str
    clip: float | None
    threshold: tuple[float, float] | None
    clipped: Tensor
    unclipped: Tensor
    num_train_timesteps: int
    _tables: dict[torch.device, StepTables] = field(default_factory=dict, repr=False)

    @property
    def num_steps(self) -> int:
        """K."""
        return int(self.timesteps.shape[0])

    @classmethod
    def from_diffusers(
        cls, scheduler: Any, num_inference_steps: int | None = None, *, eta: float | None = None
    ) -> Schedule:
        """Read the chain of a diffusers DDPMScheduler or DDIMScheduler, or of its config.

        Args:
            scheduler: the scheduler object, its `config`, or a dict with the same keys; missing keys take diffusers'
                defaults. `_class_name` (or the object's class) says DDPM or DDIM; without it, DDPM. With
                `_diffusers_version` up to 0.11, a DDPM chain of all steps is rounded as that release rounds it.
            num_inference_steps: K; None for all training timesteps.
            eta: samples the DDIM chain with this eta, whichever scheduler is given; None keeps a DDPM chain and gives
                DDIM its default, 0.

        Raises:
            ScheduleError: a setting is unknown or unsupported; the message names it.
        """
        config, name = read_settings(scheduler)
        n_train = int(config["num_train_timesteps"])
        n = n_train if num_inference_steps is None else int(num_inference_steps)
        if not 1 <= n <= n_train or n != (num_inference_steps or n):
            raise ScheduleError(
                f"num_inference_steps must be a whole number from 1 to num_train_timesteps = {n_train}, "
                f"got {num_inference_steps}"
            )
        ddim = eta is not None or name == "DDIMScheduler"
        eta = (0.0 if eta is None else float(eta)) if ddim else 1.0
        if not 0 <= eta <= 1:
            raise ScheduleError(f"eta must be in [0, 1], got {eta}")

        steps = np.arange(n)[::-1] if num_inference_steps is None else spaced_timesteps(config, n, n_train)
        stored = not ddim and rounded_as_0_11(config, steps)
        betas = training_betas(config)
        abar_train = _rounded_abar(betas) if stored else training_abar(config)
        abar = abar_train[steps]
        last = abar_train[0] if ddim and not config["set_alpha_to_one"] else 1.0
        abar_prev = np.append(abar[1:], last)
        if np.any(abar_prev < abar - 1e-12):
            raise ScheduleError("alphas_cumprod must not increase with the timestep; check trained_betas")
        if ddim:
            if config["timestep_spacing"] != "leading" and np.any(np.diff(steps) != -(n_train // n)):
                warnings.warn(
                    f"timestep_spacing={config['timestep_spacing']!r} with {n} of {n_train} steps: diffusers' "
                    "DDIMScheduler.step goes back num_train_timesteps // num_inference_steps from each timestep, which "
                    "is not the next timestep; this chain uses the next timestep",
                    stacklevel=2,
                )
            A, B, sigma = _ddim_tables(abar, abar_prev, eta)
        else:
            alpha = 1 - betas[steps] if stored else abar / abar_prev
            A, B, sigma = _ddpm_tables(abar, abar_prev, alpha, config["variance_type"])
            sigma[steps == 0] = 0.0  # diffusers adds no noise at t = 0, whatever the variance type
        sigma[sigma**2 < _NO_NOISE] = 0.0

        clipped, unclipped = np.ones_like(A), np.zeros_like(A)
        if ddim:  # diffusers' default (use_clipped_model_output=False): epsilon is not recomputed from the clipped x0
            root_prev = np.sqrt(abar_prev)
            # set_alpha_to_one=False at t = 0: the step has no x0 term. Any divisor does, its weights compensate.
            A = np.where(A > 1e-6 * root_prev, A, 1e-3 * root_prev)
            clipped, unclipped = root_prev / A, np.sqrt(abar) * B / A
        if abar[0] <= 0 and config["prediction_type"] == "epsilon":
            raise ScheduleError("rescale_betas_zero_snr needs prediction_type 'v_prediction' or 'sample': at zero "
                                "terminal SNR an epsilon says nothing about x0")  # fmt: skip
        as_tensor = torch.from_numpy
        return cls(
            timesteps=as_tensor(steps.copy()), A=as_tensor(A), B=as_tensor(B), sigma=as_tensor(sigma),
            abar=as_tensor(abar), kind="ddim" if ddim else "ddpm", eta=eta,
            prediction_type=config["prediction_type"],
            clip=float(config["clip_sample_range"]) if config["clip_sample"] and not config["thresholding"] else None,
            threshold=(float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"]))
            if config["thresholding"] else None,
            clipped=as_tensor(clipped), unclipped=as_tensor(unclipped), num_train_timesteps=n_train,
        )  # fmt: skip

    def predict_x0(self, prediction: Tensor, x: Tensor, k: Tensor) -> Tensor:
        """m, the predicted x0 that enters the step: m = V clip(x0) - W x0, with x0 the unclipped prediction.

        DDPM: V = 1, W = 0. diffusers' DDIM clips x0 but not epsilon; written as A m + B x + sigma xi that makes
        V = sqrt(abar_prev) / A and W = sqrt(abar) B / A, with V - W = 1: without clipping m is x0.

        Args:
            prediction: (N, Tp, Da) network output.
            x: (N, Tp, Da) states.
            k: (N,) long, step of each row.

        Returns:
            (N, Tp, Da) float32.
        """
        tables = self.on(x.device)
        rows = (-1,) + (1,) * (x.dim() - 1)
        x0, raw = self.clean(prediction, x, k)
        if self.kind == "ddpm":
            return x0
        return tables.clipped[k].view(rows) * x0 - tables.unclipped[k].view(rows) * raw

    def clean(self, prediction: Tensor, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted x0, clipped as the scheduler clips it, and unclipped; arguments as in `predict_x0`."""
        tables = self.on(x.device)
        rows = (-1,) + (1,) * (x.dim() - 1)
        raw = tables.x0_of_prediction[k].view(rows) * prediction.to(x.dtype)
        if self.prediction_type != "sample":
            raw = raw + tables.x0_of_x[k].view(rows) * x
        x0 = raw
        if self.threshold is not None:
            x0 = _dynamic_threshold(raw, *self.threshold)
        elif self.clip is not None:
            x0 = raw.clamp(-self.clip, self.clip)
        return x0, raw

    def on(self, device: torch.device | str) -> StepTables:
        """The float32 tables on `device`, made once and kept."""
        device = torch.device(device)
        if device not in self._tables:
            self._tables[device] = self._make_tables(device)
        return self._tables[device]

    def _make_tables(self, device: torch.device) -> StepTables:
        K = self.num_steps
        decay = torch.eye(K, dtype=torch.float64)
        for i in range(K - 1):
            decay[i + 1 :, i] = torch.cumprod(self.B[i : K - 1], dim=0)
        response = torch.cat([decay[:, 1:], torch.zeros(K, 1, dtype=torch.float64)], dim=1)  # [j, i] = decay[j, i + 1]
        root, noise = self.abar.sqrt(), (1 - self.abar).sqrt()
        x0_of_x, x0_of_prediction = {
            "epsilon": (1 / root, -noise / root),
            "sample": (torch.zeros_like(root), torch.ones_like(root)),
            "v_prediction": (root, -noise),
        }[self.prediction_type]
        shift = torch.where(self.sigma > 0, self.A / self.sigma.clamp(min=1e-30), torch.zeros_like(self.A))

        def f32(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=torch.float32)

        return StepTables(
            timesteps=self.timesteps.to(device), A=f32(self.A), B=f32(self.B), sigma=f32(self.sigma),
            abar=f32(self.abar), shift=f32(shift), x0_of_x=f32(x0_of_x), x0_of_prediction=f32(x0_of_prediction),
            clipped=f32(self.clipped), unclipped=f32(self.unclipped), decay=f32(decay), response=f32(response),
        )  # fmt: skip


def _rounded_abar(betas: np.ndarray) -> np.ndarray:
    """alphas_cumprod with diffusers' float32 rounding."""
    return torch.cumprod(1.0 - torch.from_numpy(betas.astype(np.float32)), dim=0).double().numpy()


def _ddpm_tables(
    abar: np.ndarray, abar_prev: np.ndarray, alpha: np.ndarray, variance: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    beta = 1 - alpha
    A = np.sqrt(abar_prev) * beta / (1 - abar)
    B = np.sqrt(alpha) * (1 - abar_prev) / (1 - abar)
    small = beta * (1 - abar_prev) / (1 - abar)
    return A, B, np.sqrt(beta if variance == "fixed_large" else small)


def _ddim_tables(abar: np.ndarray, abar_prev: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sigma = eta * np.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
    B = np.sqrt(np.maximum(1 - abar_prev - sigma**2, 0)) / np.sqrt(1 - abar)
    return np.sqrt(abar_prev) - np.sqrt(abar) * B, B, sigma


def _dynamic_threshold(x0: Tensor, ratio: float, maximum: float) -> Tensor:
    """Clip each row to its own quantile s of |x0|, at least 1, and divide by s (Imagen, arXiv 2205.11487)."""
    s = torch.quantile(x0.flatten(1).abs(), ratio, dim=1).clamp(1.0, maximum)
    s = s.view((-1,) + (1,) * (x0.dim() - 1))
    return x0.clamp(-s, s) / s
