"""Draft trees: several children for every drafted state, tried one after the other (arXiv 2609.17691)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chains import Chains
from .coupling import log_ratio, residual_mass, residual_step
from .inpainting import Inpainting
from .networks import Denoise, Networks
from .noise import Draws, Generator, Noise
from .sampling import draw
from .schedule import Schedule, StepTables
from .speculation import check_speculative
from .stats import Sample
from .window import Turn

__all__ = ["MAX_NODES", "Trees", "check_tree", "sample_tree"]

MAX_NODES = 4096
"""Rows of a round and chain at most."""


def check_tree(children: int | Sequence[int] = 2, depth: int = 4) -> list[int]:
    """Children of a node at each level.

    Raises:
        ValueError: not positive whole numbers, not `depth` of them, or more than MAX_NODES nodes.
    """
    levels = [children] * depth if isinstance(children, int) else list(children)
    if depth < 1 or len(levels) != depth or any(not isinstance(n, int) or n < 1 for n in levels):
        raise ValueError(
            f"a draft tree needs a positive number of children, or {depth} of them for depth {depth}, got {children!r}"
        )
    nodes, width = 1, 1
    for n in levels:
        width *= n
        nodes += width
    if nodes > MAX_NODES:
        raise ValueError(f"a draft tree of {nodes} nodes is too large (at most {MAX_NODES}): fewer children or levels")
    return levels


def sample_tree(
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    children: int | Sequence[int] = 2,
    depth: int = 4,
    inpaint: Inpainting | None = None,
) -> Sample:
    """Speculation with a tree of drafts and greedy rejection: exact, as `sample_speculative`.

    All nodes draft the freshest x0 there is; siblings differ in their noise. One call evaluates the tree. From the root
    down, a node's children are tried in turn (`_accept`): the first that is kept is the next node. If none is kept the
    step is drawn from what is left of the target. Against a chain of as many rows a tree is short but seldom rejected.

    Args:
        children: of every node, or `depth` numbers, one for each level.
        depth: levels below the root: drafted steps of a round at most.

    Raises:
        ScheduleError, ValueError: as `sample_speculative`; see `check_tree`.
    """
    return draw(
        lambda networks: Trees(networks, children=children, depth=depth), denoise, schedule, noise,
        generator=generator, inpaint=inpaint,
    )  # fmt: skip


class Trees(Chains):
    """Chains that grow trees; see `sample_tree`."""

    draws = True

    def __init__(self, networks: Networks, *, children: int | Sequence[int] = 2, depth: int = 4) -> None:
        super().__init__(networks)
        check_speculative(self.schedule)
        (B, D), K, device = self.x.shape, self.schedule.num_steps, networks.device
        self._levels, width = check_tree(children, depth), 1
        self._ends = [1]  # nodes of the tree down to each level
        for n in self._levels:
            width *= n
            self._ends.append(self._ends[-1] + width)
        self._nodes = torch.tensor(self._ends, device=device)
        self._m = torch.zeros(B, D, device=device)
        self._xi = torch.zeros(K, B, D, device=device)
        self._draws = Draws(B, D, device)

    def load(
        self, noise: Noise, generator: Generator, warm_start: Tensor | None, chain: Tensor | None
    ) -> None:  # fmt: skip
        to: Tensor | slice = slice(None) if chain is None else chain
        self._m[to] = 0.0
        self._xi[:, to] = noise.steps.flatten(2)
        self._draws.load(generator, self.networks.known, chain)

    def sizes(self, chain: Tensor, k: Tensor) -> Tensor:
        """Chains near their end have shorter trees: no step beyond the last, which is never drafted."""
        return self._nodes[(self.schedule.num_steps - 1 - k).clamp(max=len(self._levels))]

    def widths(self) -> list[int]:
        return [self._ends[-1]]

    def prepare(self, turn: Turn) -> None:
        # For all levels, grown or not: what a chain draws must not depend on how far the others of its batch are.
        self._draws.draw(turn.chain, self._ends[-1] + 1)

    def round(self, turn: Turn) -> None:
        chain = turn.chain
        b, at, x, m0 = torch.arange(len(chain), device=chain.device), self.k[chain], self.x[chain], self._m[chain]
        levels = self._levels[: self._ends.index(turn.rows)]
        xi, u = self._draws.xi[chain], self._draws.u[chain]
        tree = _grow(self.tables, at, x, m0, levels, xi, u)
        m = self.networks.predict_rows(turn, tree.x, tree.steps, tree.valid, m0.unsqueeze(1).expand_as(tree.x))
        node, level, rejected, state = _walk(self.tables, tree, m, m0, self._xi[:, chain])
        # After a rejection the rejected children's x0 is as fresh as can be: the first child's.
        self._m[chain] = m[b, torch.where(rejected, tree.first_child(node), node)]
        rows = self.rows[chain]
        self.x[chain] = torch.where((rows == 0)[:, None], x, state)
        self.advance(chain, at, rows, level, rejected)


@dataclass(frozen=True)
class _Tree:
    """Drafted nodes of b chains, level by level, siblings side by side.

    levels: children of a node at each level; starts: index of the first node of each level; steps: (b, N) the step a
    node is before; x: (b, N, D); xi: (b, N, D) and u: (b, N), the noise that led to a node and the draw that tries it;
    w: (b,) the draw of the residual; valid: (b, N) nodes before step K.
    """

    levels: list[int]
    starts: list[int]
    steps: Tensor
    x: Tensor
    xi: Tensor
    u: Tensor
    w: Tensor
    valid: Tensor

    def first_child(self, node: Tensor) -> Tensor:
        """(b,) index of the first child of nodes above the last level."""
        child = torch.zeros_like(node)
        for level, n in enumerate(self.levels):
            low, high = self.starts[level], self.starts[level + 1]
            child = torch.where((node >= low) & (node < high), high + (node - low) * n, child)
        return child


def _grow(
    tables: StepTables, at: Tensor, x: Tensor, m0: Tensor, levels: list[int], xi: Tensor, u: Tensor
) -> _Tree:
    """x_child = A m0 + B x_parent + sigma xi_child, with noise of its own for every child.

    xi: (b, N', D), u: (b, N') for N' - 1 nodes or more; the last uniform draws the residual.
    """
    K, b, width, starts, ends = tables.sigma.shape[0], len(x), 1, [0], [1]
    for n in levels:
        width *= n
        starts.append(ends[-1])
        ends.append(ends[-1] + width)
    states, steps = [x.unsqueeze(1)], [at[:, None]]
    for level, n in enumerate(levels):
        k = (at + level).clamp(max=K - 1)
        A, B, sigma = (t[k].view(-1, 1, 1) for t in (tables.A, tables.B, tables.sigma))
        mean = (A * m0.unsqueeze(1) + B * states[-1]).repeat_interleave(n, dim=1)
        states.append(mean + sigma * xi[:, starts[level + 1] : ends[level + 1]])
        steps.append((at + level + 1)[:, None].expand(b, states[-1].shape[1]))
    at_step, N = torch.cat(steps, dim=1), ends[-1]
    return _Tree(
        levels=levels, starts=[*starts, N], steps=at_step.clamp(max=K - 1), x=torch.cat(states, dim=1),
        xi=xi[:, :N], u=u[:, :N], w=u[:, -1], valid=at_step < K,
    )  # fmt: skip


def _walk(
    tables: StepTables, tree: _Tree, m: Tensor, m0: Tensor, own: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(node (b,), level (b,), rejected (b,) bool, state (b, D)): the deepest kept node, the state after its step.

    own: (K, b, D), the noise of a node's step where no child of it was tried.
    """
    b = torch.arange(m.shape[0], device=m.device)
    v = tables.shift[tree.steps].unsqueeze(-1) * (m0.unsqueeze(1) - m)  # of the step out of each node
    node, level = torch.zeros_like(b), torch.zeros_like(b)
    rejected = torch.zeros_like(b, dtype=torch.bool)
    log_p, first = torch.zeros_like(b, dtype=torch.float64), torch.zeros_like(b)
    for n in tree.levels:
        child = tree.first_child(node)
        siblings = child[:, None] + torch.arange(n, device=m.device)
        kept, left = _accept(v[b, node], tree.xi[b[:, None], siblings], tree.u[b[:, None], siblings])
        alive = ~rejected & tree.valid[b, child]
        none = ~kept.any(dim=1)
        node = torch.where(alive & ~none, child + kept.long().argmax(dim=1), node)
        level = level + (alive & ~none)
        log_p, first = torch.where(alive & none, left, log_p), torch.where(alive & none, child, first)
        rejected = rejected | (alive & none)
    k = tree.steps[b, node]
    residual = residual_step(v[b, node], tree.xi[b, first], log_p, tree.w)
    z = torch.where(rejected[:, None], residual, own[k, b])
    A, B, sigma = (t[k].unsqueeze(-1) for t in (tables.A, tables.B, tables.sigma))
    return node, level, rejected, A * m[b, node] + B * tree.x[b, node] + sigma * z


def _accept(v: Tensor, xi: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy rejection: try n draws of the draft one after the other against what is left of the target.

        p_1 = p,   keep x_j with probability min(1, p_j(x_j) / q(x_j)),   p_{j+1} proportional to (p_j - q)_+

    With p, q the target and the draft, p_j = (p - c_j q)_+ / N_j, N_j = mass of (p - c_j q)_+, c_1 = 0 and
    c_{j+1} = c_j + N_j: everything is a `residual_mass` with P = 1 / c.

    Args:
        v: (b, D); xi: (b, n, D) the draws' noises; u: (b, n) uniforms.

    Returns:
        kept (b, n): whether draw j is kept if it is reached; ln P (b,) of the residual after all n are rejected.
    """
    d = torch.linalg.vector_norm(v, dim=-1).double()
    ratio = log_ratio(v.unsqueeze(1), xi).double().exp()
    c, mass, kept = torch.zeros_like(d), torch.ones_like(d), []
    for j in range(xi.shape[1]):
        if j:
            mass = c * residual_mass(-c.log(), d)
        kept.append((1 - u[:, j].double()) * mass <= (ratio[:, j] - c).clamp(min=0.0))
        c = c + mass
    return torch.stack(kept, dim=1), -c.log()
