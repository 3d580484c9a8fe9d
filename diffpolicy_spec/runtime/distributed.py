"""Several processes, one device each: rank 0 runs the sampler, the others denoise rows for it.

peers = join_peers("cuda:0")                      # in every process, e.g. under torchrun
network = inference_network(module, 100)
if peers.rank == 0:
    with DistributedDenoise(peers, module, network) as denoise:
        denoise.load(condition)
        sample_speculative(denoise, ...)
else:
    serve(peers, module, network)                 # until rank 0 is done
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffpolicy_spec.runtime.network import InferenceNetwork, Watch

from .peers import Order, Peers
from .split import Split
from .weights import digest, layout, tensors_of

__all__ = ["DistributedDenoise", "WorkerError", "serve"]

T = TypeVar("T")

_LONGEST = 4000  # bytes of an error's text


class WorkerError(RuntimeError):
    """Another process failed, does not answer, or is gone; names its rank."""


class DistributedDenoise:
    """A Denoise, on rank 0: rows go to the ranks in contiguous parts and come back in their order.

    When it is made the workers get this rank's weights and check that they hold them; weights changed since are sent
    again at `load`. Close it, or use it as a context manager, so that the workers stop.

    A worker's error is raised here; from then on every call raises it. On CPU it is raised by the call itself. On GPUs
    the host runs ahead of the rows: that worker's rows are NaN, and the error is raised by the first call after it is
    known, by `load`, or by `close`.

    Args:
        module: whose weights `network` uses.
        network: what is called.
        split: from how many rows on, and in which shares.

    Raises:
        WorkerError: a worker failed, does not answer, or has a module of another layout.
        ValueError: not rank 0, or not one speed per rank.
    """

    def __init__(
        self, peers: Peers, module: nn.Module, network: InferenceNetwork, *, split: Split | None = None
    ) -> None:
        if peers.rank != 0:
            raise ValueError(f"the sampler runs on rank 0: rank {peers.rank} must call serve(...)")
        self._peers, self._module, self._network, self._split = peers, module, network, split or Split()
        self._split.sizes(0, peers.size)
        self._workers = list(range(1, peers.size))
        self._features: Tensor | None = None
        self._failure: str | None = None
        self._flags: list[_Flags] = []
        self._watch = Watch(module)
        try:
            self._follow_weights()
        except WorkerError:
            self._stop()
            raise

    def __enter__(self) -> DistributedDenoise:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @torch.no_grad()
    def load(self, condition: Tensor) -> None:
        """What rows are denoised under from here on: (B, C) float32, sent to every rank once a chunk."""
        self._check(wait=True)
        self._follow_weights()
        ask = _Ask(Order.LOAD, tuple(condition.shape), (condition.to(torch.float32),))
        self._features, _ = self._exchange(dict.fromkeys(self._workers, ask), lambda: self._network.features(condition))
        self._check(wait=True)

    def __call__(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The prediction (N, Tp, Da) at rows x: (N, Tp, Da) float32, t: (N,), chain: (N,), all on rank 0's device."""
        return (self.split if self._split.applies(x.shape[0]) else self.alone)(x, t, chain)

    @torch.no_grad()
    def alone(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The same on rank 0, however many rows."""
        if self._features is None:
            raise RuntimeError("rows were given before a condition: call load(condition) first")
        return self._network(x, t, self._features[chain])

    @torch.no_grad()
    def split(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The same on all ranks, however few rows; those left without one do nothing."""
        self._check(wait=False)
        sizes = self._split.sizes(x.shape[0], self._peers.size)
        own, *parts = pack(x, t, chain).split(sizes)
        asks = {
            rank: _Ask(Order.ROWS, (len(part), *x.shape[1:]), (part,), len(part) * x[0].numel())
            for rank, part in zip(range(1, self._peers.size), parts, strict=True)
            if len(part)
        }
        n = len(own)
        first, answers = self._exchange(asks, lambda: self.alone(x[:n], t[:n], chain[:n]) if n else x[:0])
        self._check(wait=x.device.type == "cpu")
        return torch.cat([first, *(answer.view(-1, *x.shape[1:]) for answer in answers)])

    def close(self) -> None:
        """Tell the workers to stop; raises what is still unsaid of their errors. Closing again does nothing."""
        try:
            if self._failure is None:
                self._check(wait=True)
        finally:
            self._stop()

    def _stop(self) -> None:
        for rank in self._workers:
            with suppress(RuntimeError):  # one that is gone has stopped
                self._peers.order(rank, Order.STOP)
        self._workers = []

    @torch.no_grad()
    def _follow_weights(self) -> None:
        if not self._watch.changed():
            return
        weights = [tensor.detach() for _, tensor in tensors_of(self._module)]
        for order, told, tensors in ((Order.LAYOUT, layout, []), (Order.WEIGHTS, digest, weights)):
            check = _bytes_to(told(self._module), self._peers.device)
            self._exchange(dict.fromkeys(self._workers, _Ask(order, (), (check, *tensors))), lambda: None)
            self._check(wait=True)

    def _exchange(self, asks: Mapping[int, _Ask], own: Callable[[], T]) -> tuple[T, list[Tensor]]:
        """Ask the workers, do one's own part, and collect the answers, by rank."""
        answers, requests = [], []
        for rank, ask in asks.items():
            with self._reaching(rank):
                self._peers.order(rank, ask.order, *ask.sizes)
                requests += [(rank, self._peers.send(rank, tensor)) for tensor in ask.tensors]
                answers.append(torch.empty(ask.answers + 1, device=self._peers.device))
                requests.append((rank, self._peers.receive(rank, answers[-1])))
        try:
            result = own()
        finally:  # whatever happened here, the answers belong to this call and not to the next
            for rank, request in requests:
                with self._reaching(rank):
                    request.wait()
            if answers:
                self._flags.append(_Flags(tuple(asks), torch.stack([answer[-1] for answer in answers])))
        return result, [answer[:-1] for answer in answers]

    def _check(self, wait: bool) -> None:
        """Raise what workers have reported; wait: also what is still under way."""
        if self._failure is not None:
            raise WorkerError(self._failure)
        while self._flags and (wait or self._flags[0].arrived()):
            for rank, length in self._flags.pop(0).read():
                if length:
                    with self._reaching(rank):
                        text = self._peers.hear(rank, length).decode(errors="replace")
                    self._failure = f"rank {rank} failed: {text}"
                    raise WorkerError(self._failure)

    @contextmanager
    def _reaching(self, rank: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._failure = f"rank {rank} is gone, or has not answered in {self._peers.seconds:g} s: {error}"
            raise WorkerError(self._failure) from error


@torch.no_grad()
def serve(peers: Peers, module: nn.Module, network: InferenceNetwork) -> None:
    """Denoise rows for rank 0 until it says that it is done. Weights are written into `module`, in place.

    Raises:
        WorkerError: rank 0 is gone.
        Exception: whatever the network raised, after rank 0 was told.
    """
    features: Tensor | None = None
    while True:
        try:
            order, sizes = peers.next_order()
            if order is Order.STOP:
                return
            given = _receive(peers, module, order, sizes)
        except RuntimeError as error:
            raise WorkerError(f"rank 0 is gone: {error}") from error
        answer = torch.zeros((math.prod(sizes) if order is Order.ROWS else 0) + 1, device=peers.device)
        try:
            if order is Order.LAYOUT:
                _same(given[0], layout(module), "the module has other names, dtypes or shapes than rank 0's")
            elif order is Order.WEIGHTS:
                for (_, ours), theirs in zip(tensors_of(module), given[1:], strict=True):
                    ours.copy_(theirs)
                _same(given[0], digest(module), "the weights are not rank 0's after they were copied")
            elif order is Order.LOAD:
                features = network.features(given[0])
            elif features is None:
                raise RuntimeError("rows were given before a condition: call load(condition) first")
            else:
                x, t, chain = unpack(given[0], (sizes[1], sizes[2]))
                answer[:-1] = network(x, t, features[chain]).flatten()
        except Exception as error:
            text = f"{type(error).__name__}: {error}".encode()[:_LONGEST]
            answer[:-1], answer[-1] = float("nan"), len(text)
            peers.send(0, answer).wait()
            peers.say(0, text)
            raise
        peers.send(0, answer).wait()


def pack(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
    """One message: (n, Tp Da + 2) float32, rows and their t and chain; integers below 2^24 are exact in float32."""
    return torch.cat([x.flatten(1), t[:, None], chain[:, None]], dim=1)


def unpack(message: Tensor, chunk: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack`; chunk: (Tp, Da)."""
    t, chain = message[:, -2:].long().unbind(1)
    return message[:, :-2].reshape(-1, *chunk), t, chain


@dataclass(frozen=True)
class _Ask:
    """What one worker is asked: the order, its sizes, what goes with it, and numbers that the answer has."""

    order: Order
    sizes: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    answers: int = 0


class _Flags:
    """One number from each of some ranks: bytes of the text of its error, or 0. On CUDA, copied without waiting."""

    def __init__(self, ranks: tuple[int, ...], flags: Tensor) -> None:
        self._ranks, self._event = ranks, None
        self._flags = flags
        if flags.device.type == "cuda":
            self._flags = torch.empty(flags.shape, pin_memory=True).copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def arrived(self) -> bool:
        return self._event is None or self._event.query()

    def read(self) -> list[tuple[int, int]]:
        """(rank, bytes), once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return [(rank, int(flag)) for rank, flag in zip(self._ranks, self._flags.tolist(), strict=True)]


def _receive(peers: Peers, module: nn.Module, order: Order, sizes: list[int]) -> list[Tensor]:
    """What comes with an order, see `Order`."""
    empty = partial(torch.empty, device=peers.device)
    if order is Order.ROWS:
        into = [empty(sizes[0], sizes[1] * sizes[2] + 2)]
    elif order is Order.LOAD:
        into = [empty(sizes[:2])]
    else:
        weights = [tensor for _, tensor in tensors_of(module)] if order is Order.WEIGHTS else []
        into = [
            empty(32, dtype=torch.uint8),
            *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights),
        ]
    for request in [peers.receive(0, tensor) for tensor in into]:
        request.wait()
    return into


def _bytes_to(value: bytes, device: torch.device) -> Tensor:
    return torch.tensor(list(value), dtype=torch.uint8, device=device)


def _same(theirs: Tensor, ours: bytes, otherwise: str) -> None:
    if bytes(theirs.tolist()) != ours:
        raise ValueError(otherwise)
