"""What calibration has found for a live policy's weights: gains, a draft network, the quickest sampler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffpolicy_spec.acceleration.errors import AccelerateError
from diffpolicy_spec.acceleration.shared import Shared
from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.choice.record import Choice, resolve_auto
from diffpolicy_spec.gains import Gains
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["Stored", "read_stored"]


@dataclass(frozen=True, eq=False)
class Stored:
    """Tensors as in speculation.safetensors, and choices as in speculation.json.

    Attributes:
        tensors: gains and draft network by name.
        choices: the quickest samplers found, by device.
        weights: fingerprint of the network they were made for; None: not known, and not compared.
        where: where they come from, for messages.
        steps: K of the chain that choices without num_inference_steps are for; None: all training timesteps.
        draft, fitting: the draft network, and the fingerprint of network and tensors: set by `for_network`.
    """

    tensors: Mapping[str, Tensor]
    choices: Sequence[Choice] = ()
    weights: str | None = None
    where: str = "speculation"
    steps: int | None = None
    draft: DraftNetwork | None = None
    fitting: str | None = None

    def for_network(self, shared: Shared | None, device: torch.device) -> Stored:
        """The same on a device, for a network it was made for.

        Raises:
            AccelerateError: the network has other weights, or is none that gains can be made for here.
        """
        if shared is None:
            raise AccelerateError(
                f"{self.where} is of no use for this policy: its network is not a published one in float32, unchanged "
                "and without hooks, so nothing can have been calibrated for it; leave speculation away"
            )
        if self.weights is not None and fingerprint(shared.network, None) != self.weights:
            raise AccelerateError(
                f"{self.where} was made for other weights than this policy's: convert and calibrate this one "
                "(dps-convert, dps-calibrate), or leave speculation away"
            )
        draft = DraftNetwork.from_stored(self.tensors)
        C = getattr(shared.network, "global_cond_dim", 0)
        if draft is not None and draft.read_condition.in_features != C:
            raise AccelerateError(
                f"{self.where} has a draft network for conditions of {draft.read_condition.in_features} dimensions; "
                f"this policy's have {C}"
            )
        tensors = {name: value.to(device) for name, value in self.tensors.items()}
        known = fingerprint(shared.network, self.tensors)
        return replace(self, tensors=tensors, draft=None if draft is None else draft.to(device), fitting=known)

    def resolve(self, config: SamplerConfig, steps: int, eta: float | None, device: torch.device) -> SamplerConfig:
        """What "auto" stands for on this device; other configs as they are. Of what `for_network` has returned."""
        if config.method != "auto" or not self.choices or eta is not None or config.eta is not None:
            return config
        wanted = config.num_inference_steps or steps
        asked = replace(config, num_inference_steps=None if wanted == self.steps else wanted)
        return replace(resolve_auto(asked, self.choices, device, self.fitting), num_inference_steps=wanted)


def read_stored(speculation: str | os.PathLike[str] | Mapping[str, Tensor] | None) -> Stored | None:
    """What is to be used for speculation.

    Args:
        speculation: a native checkpoint folder that was calibrated (`dps-convert`, then `dps-calibrate`), or the
            tensors of its speculation.safetensors, which are taken to be this policy's.

    Raises:
        AccelerateError: there is nothing in it, or it is not a native checkpoint folder.
        CheckpointError, ValueError: it is damaged.
    """
    if speculation is None:
        return None
    if isinstance(speculation, Mapping):
        tensors = dict(speculation)
        _check(tensors)
        return Stored(tensors)
    from diffpolicy_spec.checkpoints.native import load_native

    where = Path(speculation)
    if not (where / "config.json").is_file():
        raise AccelerateError(
            f"speculation={where}: not a native checkpoint folder; make one with dps-convert and calibrate it with "
            "dps-calibrate"
        )
    policy = load_native(where)
    if not policy.speculation and not policy.choices:
        raise AccelerateError(f"{where} has nothing for speculation: run dps-calibrate checkpoint={where}")
    steps = int(policy.scheduler_config.get("num_train_timesteps", 1000))
    return Stored(
        dict(policy.speculation or {}), policy.choices, fingerprint(policy.network, None), str(where),
        policy.config.num_inference_steps or steps,
    )  # fmt: skip


def _check(tensors: Mapping[str, Tensor]) -> None:
    if Gains.from_state_dict(tensors) is None and DraftNetwork.from_stored(tensors) is None:
        raise AccelerateError(
            "speculation has neither gains nor a draft network: give what calibrate's Gains.state_dict() or "
            "speculation.safetensors holds"
        )
