"""One process, several devices: the rows of a call shared out over copies of the network.

Verification calls have many rows, and rows do not see each other; De Bortoli et al., "Accelerated Diffusion Models via
Speculative Sampling", ICML 2025, run them in parallel on several devices in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffpolicy_spec.runtime.network import InferenceNetwork, Watch

from .split import Split
from .weights import tensors_of

__all__ = ["Copies", "Replicas", "replicate"]


class Copies:
    """A module, and copies of it on other devices that follow its weights.

    Args:
        module: stays where it is.
        devices: where copies are made.
    """

    def __init__(self, module: nn.Module, devices: Sequence[torch.device | str]) -> None:
        self.modules = (module, *(copy.deepcopy(module).to(device) for device in devices))
        self._watch = Watch(module)
        self._watch.changed()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights, in place, if the module's have changed since."""
        if not self._watch.changed():
            return
        first, *others = self.modules
        for other in others:
            for (_, theirs), (_, ours) in zip(tensors_of(other), tensors_of(first), strict=True):
                theirs.copy_(ours, non_blocking=True)


@dataclass
class _Lane:
    """A device beside the first one. On CUDA a call's copies and kernels run on streams of its own, at both ends."""

    network: InferenceNetwork
    device: torch.device
    home: torch.cuda.Stream | None  # on the first device
    away: torch.cuda.Stream | None  # on this lane's
    features: Tensor | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work herein begins after what the first device was given before; see `join`."""
        if self.home is None or self.away is None:
            yield
            return
        current = torch.cuda.current_stream(self.home.device)
        self.home.wait_stream(current)
        self.away.wait_stream(current)
        # A copy between devices orders the current streams of both: with these two no lane waits for another.
        with torch.cuda.stream(self.home), torch.cuda.stream(self.away):
            yield

    def join(self) -> None:
        """What the first device is given from here on waits for this lane, so memory may also be used again there."""
        if self.home is not None and self.away is not None:
            current = torch.cuda.current_stream(self.home.device)
            current.wait_stream(self.home)
            current.wait_stream(self.away)


class Replicas:
    """A Denoise: rows go to the devices in contiguous parts and come back to the first one in their order.

    Calls never wait for a device on the host. Devices run at the same time on CUDA; on CPU, one after the other (a CPU
    is shared by threads, or by processes: `distributed`). A call spans devices, so it cannot be captured in a CUDA
    graph; the networks themselves may be.

    Args:
        networks: one per device, with equal weights, each on its device.
        devices: the first is where rows come from; a device may be named twice.
        split: from how many rows on, and in which shares.
        refresh: called by `load`, before anything is computed: `Copies.refresh`.

    Raises:
        ValueError: not one network per device, or not one speed per device.
    """

    def __init__(
        self,
        networks: Sequence[InferenceNetwork],
        devices: Sequence[torch.device | str],
        *,
        split: Split | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        if not networks or len(networks) != len(devices):
            raise ValueError(f"{len(networks)} networks for {len(devices)} devices: give one each, and at least one")
        self._refresh = refresh
        self.devices = tuple(torch.device(device) for device in devices)
        self.share(split or Split())
        self._network = networks[0]
        self._features: Tensor | None = None
        on_cuda = all(device.type == "cuda" for device in self.devices)
        self._lanes = [
            _Lane(
                network,
                device,
                torch.cuda.Stream(self.devices[0]) if on_cuda else None,
                torch.cuda.Stream(device) if on_cuda else None,
            )
            for network, device in zip(networks[1:], self.devices[1:], strict=True)
        ]

    def share(self, split: Split) -> None:
        """Share rows out this way from here on."""
        split.sizes(0, len(self.devices))
        self._split = split

    @torch.no_grad()
    def load(self, condition: Tensor) -> None:
        """What rows are denoised under from here on: (B, C), sent to every device once a chunk; `chain` indexes it."""
        if self._refresh is not None:
            self._refresh()
        for lane in self._lanes:
            with lane.running():
                lane.features = lane.network.features(condition.to(lane.device, non_blocking=True))
        self._features = self._network.features(condition)
        for lane in self._lanes:
            lane.join()

    def __call__(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The prediction (N, Tp, Da) at rows x: (N, Tp, Da), t: (N,), chain: (N,), all on the first device."""
        return (self.split if self._split.applies(x.shape[0]) else self.alone)(x, t, chain)

    @torch.no_grad()
    def alone(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The same on the first device, however many rows."""
        return self._network(x, t, _loaded(self._features)[chain])

    @torch.no_grad()
    def split(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The same on all devices, however few rows; those left without one do nothing."""
        out = torch.empty_like(x)
        sizes = self._split.sizes(x.shape[0], len(self.devices))
        (own, *parts) = zip(*(rows.split(sizes) for rows in (x, t, chain, out)), strict=True)
        busy = [(lane, part) for lane, part in zip(self._lanes, parts, strict=True) if part[0].shape[0]]
        for lane, (*rows, result) in busy:
            with lane.running():
                x_there, t_there, chain_there = (r.to(lane.device, non_blocking=True) for r in rows)
                there = lane.network(x_there, t_there, _loaded(lane.features)[chain_there])
                result.copy_(there, non_blocking=True)
        if own[0].shape[0]:
            own[3].copy_(self.alone(*own[:3]))
        for lane, _ in busy:
            lane.join()
        return out


def replicate(
    module: nn.Module,
    devices: Sequence[torch.device | str],
    lay_out: Callable[[nn.Module], InferenceNetwork],
    *,
    split: Split | None = None,
) -> Replicas:
    """Replicas of one module, which is on the first of the devices; its weights are followed at every `load`.

    Args:
        lay_out: module -> what is called, such as `inference_network` with its arguments bound.
    """
    copies = Copies(module, devices[1:])
    return Replicas([lay_out(m) for m in copies.modules], devices, split=split, refresh=copies.refresh)


def _loaded(features: Tensor | None) -> Tensor:
    if features is None:
        raise RuntimeError("rows were given before a condition: call load(condition) first")
    return features
