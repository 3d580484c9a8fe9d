"""A smaller network drafts (the independent draft model of arXiv 2501.05370)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.schedule import StepTables
from diffpolicy_spec.verification import Outcome
from diffpolicy_spec.window import Draft, Window

from .protocol import SmallNetwork

__all__ = ["Model", "need_small"]


@dataclass(frozen=True)
class Model:
    """Each row drafts the draft network's x0 at its own state: a call of the draft network for every drafted step."""

    def start(self, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> _Scan:
        return _Scan(tables, need_small(small))


def need_small(small: SmallNetwork | None) -> SmallNetwork:
    """The draft network, or a ValueError that says how to get one."""
    if small is None:
        raise ValueError(
            "this drafter needs a draft network: train one with dps-train draft=PATH, or pass draft= to the sampler"
        )
    return small


class _Scan:
    def __init__(self, tables: StepTables, small: SmallNetwork) -> None:
        self._tables, self._small = tables, small

    def begin(self, prior: Tensor, chain: Tensor) -> None:
        pass

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        return wanted

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        """x_{i+1} = A_i m_i + B_i x_i + sigma_i xi_i with m_i the draft network at x_i; the leaf drafts nothing."""
        A, B, sigma = (t[window.steps].unsqueeze(-1) for t in (self._tables.A, self._tables.B, self._tables.sigma))
        states, drafts = [x], []
        for i in range(window.steps.shape[1] - 1):
            drafts.append(self._small(window, states[i].unsqueeze(1), window.steps[:, i : i + 1]).squeeze(1))
            states.append(A[:, i] * drafts[i] + B[:, i] * states[i] + sigma[:, i] * xi[:, i])
        drafts.append(torch.zeros_like(x))
        return Draft(m=torch.stack(drafts, dim=1), x=torch.stack(states, dim=1))

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        pass
