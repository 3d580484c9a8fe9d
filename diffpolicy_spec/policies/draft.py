"""The draft network: a small network distilled from a policy, which says about what the policy's network would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DraftNetwork"]

_FEATURES = 64
_DATA_SCALE = 0.5
_AGAIN = "train it again (dps-train draft=PATH)"


class DraftNetwork(nn.Module):
    """x0 of a state: residual blocks on the flat chunk, each scaled and shifted by the timestep.

        h = W_x (c_in x) + W_c condition + e_t,   h <- h + silu((1 + g_t) * W h + b_t),   x0 = c_skip x + c_out W_o h

    c_in, c_skip, c_out keep inputs and outputs at unit scale at every noise level (Karras et al. 2022, arXiv
    2206.00364, Table 1, for x = sqrt(abar) x0 + sqrt(1 - abar) noise). All sizes can be read off the weights.

    Args:
        horizon, action_dim: of the chunks (Tp, Da).
        condition_dim: of the observation condition.
        abar: (N,) alphas_cumprod of the training chain.
        clip: x0 is clipped to [-clip, clip], as the policy's is; None for no clipping.
        hidden: width; depth: blocks.
    """

    abar: Tensor
    clip: Tensor

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        abar: Tensor,
        *,
        clip: float | None,
        hidden: int = 288,
        depth: int = 3,
    ) -> None:
        super().__init__()
        D = horizon * action_dim
        self.horizon, self.action_dim, self.hidden, self.depth = horizon, action_dim, hidden, depth
        self.read_x, self.read_condition = nn.Linear(D, hidden), nn.Linear(condition_dim, hidden, bias=False)
        self.read_time = nn.Sequential(
            nn.Linear(_FEATURES, _FEATURES), nn.SiLU(), nn.Linear(_FEATURES, (2 * depth + 1) * hidden)
        )
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.write = nn.Linear(hidden, D)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)
        self.register_buffer("abar", abar.to(torch.float32).clone())
        self.register_buffer("clip", torch.tensor(float("inf") if clip is None else clip))
        self._tables: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x0: (N, Tp, Da) at states x: (N, Tp, Da), timesteps t: (N,) long, condition: (N, C)."""
        scales, times = self._time_tables()
        c_in, c_skip, c_out = scales[t].unbind(1)
        rows = x.flatten(1)
        time = times[t].view(-1, 2 * self.depth + 1, self.hidden)
        h = self.read_x(c_in[:, None] * rows) + self.read_condition(condition) + time[:, 0]
        for i, block in enumerate(self.blocks):
            h = h + nn.functional.silu(block(h) * (1 + time[:, 2 * i + 1]) + time[:, 2 * i + 2])
        x0 = c_skip[:, None] * rows + c_out[:, None] * self.write(h)
        return x0.clamp(-self.clip, self.clip).view_as(x)

    def _time_tables(self) -> tuple[Tensor, Tensor]:
        """(N, 3) scales and (N, ...) what the timestep adds and scales; kept in evaluation mode."""
        if self._tables is not None and not self.training and self._tables[0].device == self.abar.device:
            return self._tables
        noise = 1 - self.abar
        spread = self.abar * _DATA_SCALE**2 + noise
        scales = torch.stack(
            [spread.rsqrt(), self.abar.sqrt() * _DATA_SCALE**2 / spread, noise.sqrt() * _DATA_SCALE * spread.rsqrt()], 1
        )
        level = torch.log(noise.clamp(min=1e-6) / self.abar.clamp(min=1e-10)) / 4  # from clean to noise, of order one
        frequencies = torch.arange(1, _FEATURES // 2 + 1, device=level.device) * 0.25
        angles = level[:, None] * frequencies
        times = self.read_time(torch.cat([angles.sin(), angles.cos()], dim=1))
        self._tables = None if self.training else (scales, times.detach())
        return scales, times

    def train(self, mode: bool = True) -> DraftNetwork:
        self._tables = None
        return super().train(mode)

    def stored(self) -> dict[str, Tensor]:
        """What is stored beside a checkpoint: weights in float16, under names that begin with `draft.`."""
        shape = torch.tensor([self.horizon, self.action_dim])
        exact = {"abar", "clip"}
        state = {n: v if n in exact else v.to(torch.float16) for n, v in self.state_dict().items()}
        return {"draft.shape": shape, **{f"draft.{name}": value for name, value in state.items()}}

    @classmethod
    def from_stored(cls, tensors: Mapping[str, Tensor]) -> DraftNetwork | None:
        """Read `stored`; None where there is no draft network.

        Raises:
            ValueError: incomplete weights, or weights that do not fit each other or are not finite.
        """
        state: dict[str, Any] = {n.removeprefix("draft."): v for n, v in tensors.items() if n.startswith("draft.")}
        if not state:
            return None
        try:
            horizon, action_dim = (int(n) for n in state.pop("shape"))
            hidden, condition_dim = state["read_condition.weight"].shape
            depth = sum(name.startswith("blocks.") and name.endswith(".weight") for name in state)
            network = cls(horizon, action_dim, condition_dim, state["abar"], clip=None, hidden=hidden, depth=depth)
            network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"the stored draft network is damaged ({error}): {_AGAIN}") from error
        if not all(torch.isfinite(v).all() for n, v in network.state_dict().items() if n != "clip"):
            raise ValueError(f"the stored draft network has NaN or infinite weights: {_AGAIN}")
        return network.eval().requires_grad_(False)
