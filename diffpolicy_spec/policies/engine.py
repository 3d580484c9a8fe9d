"""Continuous batching: chunks for many robots, each asked for at any time, drawn in calls that they share."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_spec.deadline import FINISH, Pace
from diffpolicy_spec.finish import DEFAULT_FINISH_STEPS
from diffpolicy_spec.policies.committed import inpainting_of
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.policies.lane import Lane, Request
from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["Engine", "Finished"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A request is answered.

    Attributes:
        ticket: from `Engine.submit`.
        action_pred: (T, Da) the whole plan in the action's own units; None where there is an error.
        exact: whether it is a draw from the sampler's law; False: finished by DDIM to keep its deadline. Where some
            are, those in time are a selection: see docs/deadlines.md.
        calls: sequential network calls; evaluations: rows; accepted, rejected: drafted steps.
        shared: mean number of chains in its calls.
        latency_ms: from `submit` until it was there.
        error: what went wrong: FloatingPointError where the network returned NaN for this chain, what the network
            raised, or an ObservationError where a policy that was swapped in cannot read the observation.
    """

    ticket: int
    action_pred: NDArray[np.float32] | None
    exact: bool
    calls: int
    evaluations: int
    accepted: int
    rejected: int
    shared: float
    latency_ms: float
    error: Exception | None = None


class Engine:
    """Chunks of one policy for many robots.

    `submit` and `cancel` may be called from any thread; `step` does the work, from one thread, as long as `under_way`
    or `waiting` say that there is some. Requests begin at the next step, the ones with the earliest deadlines first.
    With one seed a chunk is the one that `DiffusionPolicy.predict_action` draws with that generator, as long as rows
    are not shared out (`adaptive`), to float rounding.

    Args:
        sampler: None: the policy's own. Its runtime's mode is "eager" here, whatever it says: calls have the rows that
            are there.
        max_chains: under way at once; more requests wait.
        finish_steps: network calls that finish a chain which would miss its deadline.
        adaptive: whether rounds have fewer rows than the sampler's window says where the chains under way get on
            faster that way, see `choice.sharing`. The law stays exact.
        clock: s, `time.monotonic` as deadlines are told in it.

    Raises:
        ValueError: max_chains or finish_steps below 1, or a runtime of several devices.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        sampler: SamplerConfig | None = None,
        *,
        max_chains: int = 16,
        finish_steps: int = DEFAULT_FINISH_STEPS,
        adaptive: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(max_chains, finish_steps) < 1:
            raise ValueError(f"max_chains and finish_steps must be at least 1, got {max_chains} and {finish_steps}")
        self._sampler, self._finish_steps, self._adaptive, self._clock = sampler, finish_steps, adaptive, clock
        self.max_chains = max_chains
        self._lock = threading.Lock()
        self._waiting: dict[int, Request] = {}
        self._cancelled: set[int] = set()
        self._next, self._pace = 0, Pace()
        self._lanes: list[Lane] = []
        self._lanes.append(self._lane(policy))

    @property
    def policy(self) -> DiffusionPolicy:
        """The policy that new requests are for."""
        return self._lanes[-1].policy

    @property
    def under_way(self) -> int:
        """Chains under way."""
        return sum(len(lane.requests) for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    def submit(
        self,
        obs: Mapping[str, NDArray[Any]],
        *,
        seed: int | None = None,
        committed: NDArray[Any] | None = None,
        deadline: float | None = None,
    ) -> int:
        """Ask for a chunk; its ticket.

        Args:
            obs: key -> (To, d) in their own units, camera -> (To, C, H, W).
            seed: of its noise; None: any. Requests with one seed have one noise: they are not independent draws.
            committed: (n, Da) actions from the newest observation on that will be executed whatever comes; the chunk
                continues them. None: the chunk is free.
            deadline: s on the clock, when it has to be there. A chain that would be late is finished by a few DDIM
                steps as late as that is possible.

        Raises:
            ObservationError: missing or unknown keys, wrong shapes, NaN or infinity.
            ValueError: committed actions that do not fit, or a seed below 0.
        """
        policy = self.policy
        if not isinstance(obs, Mapping):
            raise ObservationError(f"observations must be a mapping, got {type(obs).__name__}")
        values = policy.observations.check({key: np.asarray(value)[None] for key, value in obs.items()})
        if committed is not None:
            inpainting_of(policy, committed)  # whether it fits
        generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
        with self._lock:
            ticket, self._next = self._next, self._next + 1
            self._waiting[ticket] = Request(ticket, values, generator, committed, self._clock(), deadline)
        return ticket

    def cancel(self, ticket: int) -> bool:
        """Nobody wants this chunk any more. False: it is not known, or answered already."""
        with self._lock:
            if self._waiting.pop(ticket, None) is not None:
                return True
            known = any(r.ticket == ticket for lane in self._lanes for r in list(lane.requests.values()))
            if known:
                self._cancelled.add(ticket)
            return known

    def swap(self, policy: DiffusionPolicy) -> None:
        """Take another policy for requests that have not begun; chains under way end with the one they began with.

        Raises:
            ValueError: it has other observations or actions than the one before.
        """
        before, after = self.policy.config, policy.config
        for name in ("obs_dims", "image_shapes", "n_obs_steps", "n_action_steps", "horizon", "action_dim"):
            if getattr(before, name) != getattr(after, name):
                raise ValueError(
                    f"the policy to swap in has {name} = {getattr(after, name)} and the one in use "
                    f"{getattr(before, name)}: start another server for it"
                )
        lane = self._lane(policy)
        with self._lock:
            self._lanes = [*self._lanes, lane]

    def step(self) -> list[Finished]:
        """Begin what waits, and one call for all chains under way; the requests answered by it.

        [] where none is answered yet, and where there is nothing to do.
        """
        done = self._admit()
        for lane in self._lanes:
            self._drop(lane)
            if lane.requests:
                done += self._advance(lane)
        with self._lock:
            self._lanes = [lane for lane in self._lanes[:-1] if lane.requests] + self._lanes[-1:]
            # One that was through in this very step, while another thread cancelled it, is known no more.
            self._cancelled &= {request.ticket for lane in self._lanes for request in lane.requests.values()}
        return done

    def _lane(self, policy: DiffusionPolicy) -> Lane:
        # Weights of the same shapes take the same time.
        call = self._lanes[-1].call if self._lanes else None
        return Lane(policy, self._sampler, self.max_chains, adaptive=self._adaptive, call=call)

    def _admit(self) -> list[Finished]:
        lane = self._lanes[-1]
        with self._lock:
            order = sorted(self._waiting.values(), key=lambda r: (r.deadline is None, r.deadline, r.ticket))
            room = min(lane.pool.free, self.max_chains - self.under_way)
            requests = order[: max(room, 0)]
            for request in requests:
                del self._waiting[request.ticket]
        if not requests:
            return []
        try:
            lane.admit(requests)
        except ObservationError as error:
            if len(requests) == 1:
                return [self._failed(requests[0], error)]
        else:
            return []
        done = []
        for request in requests:  # one of them cannot be read: each by itself
            try:
                lane.admit([request])
            except ObservationError as error:
                done.append(self._failed(request, error))
        return done

    def _drop(self, lane: Lane) -> None:
        """Let go of chains that nobody wants."""
        with self._lock:
            gone = [slot for slot, request in lane.requests.items() if request.ticket in self._cancelled]
            self._cancelled -= {lane.requests[slot].ticket for slot in gone}
        lane.leave(gone)

    def _advance(self, lane: Lane) -> list[Finished]:
        if lane.threads is not None and torch.get_num_threads() != lane.threads:
            torch.set_num_threads(lane.threads)
        try:
            through = self._finish_late(lane)
            if lane.pool.under_way:
                through += self._round(lane)
        except Exception as error:  # whatever a network raises: its chains are lost, the engine goes on
            done = [self._failed(request, error) for request in lane.requests.values()]
            lane.leave(list(lane.requests))
            return done
        return self._answer(lane, through)

    def _finish_late(self, lane: Lane) -> list[int]:
        """Finish chains that would miss their deadline if they waited for another call; their slots."""
        now, steps = self._clock(), self._finish_steps
        chains = len(lane.requests)
        ahead = self._pace.expect(chains, "round") + steps * self._pace.expect(FINISH, "round")
        late = [
            slot
            for slot, request in lane.requests.items()
            if request.deadline is not None
            and now + ahead > request.deadline
            and lane.num_steps - lane.pool.at(slot) > steps  # else it needs no more calls by itself
        ]
        if late:
            for key in (chains, "round"):  # were there no more rounds, nothing would show that they are quick again
                self._pace.doubt(key)
            lane.finish(late, steps)
            self._pace.note(FINISH, (self._clock() - now) / steps)
        return late

    def _round(self, lane: Lane) -> list[int]:
        begin, chains = self._clock(), len(lane.pool.under_way)
        through = lane.round()
        for key in (chains, "round"):
            self._pace.note(key, self._clock() - begin)
        return through

    def _answer(self, lane: Lane, slots: list[int]) -> list[Finished]:
        """What chains that are through have come to; their slots are empty then."""
        done, whole = [], []
        for slot in slots:
            if lane.pool.broken(slot):
                what = FloatingPointError("the network returned NaN or infinite values for this observation")
                done.append(self._failed(lane.requests[slot], what))
            else:
                whole.append(slot)
        if whole:
            actions, stats = lane.take(whole)
            now = self._clock()
            for i, slot in enumerate(whole):
                request = lane.requests[slot]
                done.append(Finished(
                    ticket=request.ticket, action_pred=actions[i].cpu().numpy(), exact=not bool(stats.inexact[i]),
                    calls=int(stats.calls[i]), evaluations=int(stats.evaluations[i]),
                    accepted=int(stats.accepted[i]), rejected=int(stats.rejected[i]), shared=lane.pool.shared(slot),
                    latency_ms=1e3 * (now - request.submitted),
                ))  # fmt: skip
        lane.leave(slots)
        return done

    def _failed(self, request: Request, error: Exception) -> Finished:
        return Finished(
            ticket=request.ticket, action_pred=None, exact=False, calls=0, evaluations=0, accepted=0, rejected=0,
            shared=float("nan"), latency_ms=1e3 * (self._clock() - request.submitted), error=error,
        )  # fmt: skip
