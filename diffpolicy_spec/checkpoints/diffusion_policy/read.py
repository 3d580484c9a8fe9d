"""Checkpoints of diffusion_policy (Chi et al. 2023): a torch.save file with `cfg`, `state_dicts` and `pickles`.

Read without diffusion_policy, OmegaConf, hydra or dill, and without unpickling (`pickles.read_pickled`). Conventions of
its five policy classes are those of its code at 5ba07ac, among them two that look like errors and that published
weights depend on: a local condition is added on the way down only, and MultiImageObsEncoder without random_crop does
not crop at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy_spec.checkpoints.diffusion_policy.config import read_settings
from diffpolicy_spec.checkpoints.diffusion_policy.interpolation import resolve
from diffpolicy_spec.checkpoints.diffusion_policy.names import encoder_names, split_state
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields
from diffpolicy_spec.checkpoints.parts import Parts
from diffpolicy_spec.checkpoints.pickles import load_tensors, read_pickled
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.errors import NormalizationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer

__all__ = ["WEIGHTS", "is_diffusion_policy", "read_diffusion_policy"]

WEIGHTS = ("auto", "ema_model", "model")
"""Which weights of a checkpoint: the running average, those that were trained, or the average where there is one."""


def is_diffusion_policy(payload: Mapping[str, Any]) -> bool:
    """Whether a pickled file is what diffusion_policy's workspaces save."""
    return "cfg" in payload and "state_dicts" in payload


def read_diffusion_policy(
    path: str | Path, weights: str = "auto", *, payload: Mapping[str, Any] | None = None
) -> Parts:
    """Read a checkpoint of diffusion_policy.

    Low-dimensional policies take one observation "obs" there; where the config names the keys that it is joined of,
    the policy here takes these, in their order. Only the weights that are asked for are read from the file.

    Args:
        weights: "ema_model", "model", or "auto": ema_model if there is one.
        payload: of `read_pickled(path)`, if that was called already.

    Raises:
        CheckpointError: truncated or damaged; it carries code; another class; or a setting that has no counterpart
            here: the message names it. Or `weights` is unknown.
    """
    path = Path(path)
    if weights not in WEIGHTS:
        raise CheckpointError(f"weights must be one of {', '.join(WEIGHTS)}; got '{weights}'")
    payload = read_pickled(path) if payload is None else payload
    if not is_diffusion_policy(payload):
        keys = ", ".join(str(key)[:40] for key in list(payload)[:8])
        raise CheckpointError(f"{path} is not a checkpoint of diffusion_policy: it holds {keys or 'nothing'}")
    config = Fields(payload["cfg"], f"{path}: cfg").values
    try:
        settings = Fields(resolve(config, "policy"), f"{path}: cfg.policy")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    chosen, notes = _choose(Fields(payload["state_dicts"], f"{path}: state_dicts"), weights, config)
    where = f"{path}: state_dicts.{chosen}"
    state = split_state(payload["state_dicts"][chosen], where)
    read = read_settings(settings, config, state.encoder)
    cameras = list(read.policy.image_shapes)
    names = encoder_names(
        list(state.encoder), cameras, hybrid=read.kind.images == "hybrid",
        shared=read.policy.encoder is not None and read.policy.encoder.shared, where=where,
    )  # fmt: skip
    wanted = (state.network, {names[name]: state.encoder[name] for name in names}, state.normalizer)
    network, encoder, statistics = _load(*wanted)
    if read.policy.transformer is not None:
        _shorten(network, read.policy, where)
    normalizer = _normalizer(statistics, read.policy, where)
    origin = {"format": "diffusion_policy", "class": read.kind.name, "weights": chosen, "task": read.task.upstream}
    return Parts(read.policy, network, encoder, normalizer, read.scheduler, origin, (*notes, *read.notes))


def _choose(states: Fields, weights: str, config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(which state dict is read, notes)."""
    if weights != "auto":
        if weights not in states:
            there = ", ".join(name[:40] for name in states)
            raise CheckpointError(f"{states.where} lacks '{weights}'; there are: {there or 'none'}")
        return weights, ()
    if "ema_model" in states:
        return "ema_model", ()
    if "model" not in states:
        raise CheckpointError(f"{states.where} holds neither 'ema_model' nor 'model'")
    training = config.get("training")
    if isinstance(training, Mapping) and training.get("use_ema") is True:
        return "model", ("its config asks for a running average of the weights (use_ema), and the file holds none",)
    return "model", ()


def _load(*parts: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Tensors of several mappings, read in one go: a storage that they share is read once."""
    loaded = load_tensors({f"{i} {name}": value for i, part in enumerate(parts) for name, value in part.items()})
    return [{name: loaded[f"{i} {name}"] for name in part} for i, part in enumerate(parts)]


def _shorten(network: dict[str, Tensor], config: PolicyConfig, where: str) -> None:
    """With pred_action_steps_only, a transformer made for `horizon` actions is called with fewer: the first places."""
    places = network.get("pos_emb")
    if places is None or places.ndim != 3 or places.shape[1] <= config.horizon:
        return
    if "mask" in network:
        raise CheckpointError(
            f"{where}: causal attention over {places.shape[1]} actions cannot be called with {config.horizon}"
        )
    network["pos_emb"] = places[:, : config.horizon].contiguous()


def _normalizer(statistics: Mapping[str, Tensor], config: PolicyConfig, where: str) -> LinearNormalizer:
    fields: dict[str, dict[str, Tensor]] = {}
    for name, value in statistics.items():
        key, dot, field = name.partition(".input_stats.")
        if not dot:
            key, _, field = name.rpartition(".")
        field = f"input_stats.{field}" if dot else field
        fields.setdefault(key, {})[field] = value
    wanted = {key: shape[0] for key, shape in config.image_shapes.items()} | {"action": config.action_dim}
    joined = sum(config.obs_dims.values())
    split = not config.image_shapes and "obs" not in config.obs_dims
    wanted |= {"obs": joined} if split else config.obs_dims
    missing = sorted(set(wanted) - set(fields))
    if missing:
        raise CheckpointError(f"{where} lacks the statistics 'normalizer.params_dict.*' of {', '.join(missing)}")
    try:
        params = {key: _spread(fields[key], size, key, where) for key, size in wanted.items()}
        if split:
            both, at = params.pop("obs"), 0
            for key, size in config.obs_dims.items():
                params[key] = {name: value[at : at + size].clone() for name, value in both.items()}
                at += size
        return LinearNormalizer(params)
    except NormalizationError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _spread(fields: Mapping[str, Tensor], size: int, key: str, where: str) -> dict[str, Tensor]:
    """Statistics of one dimension are those of all, as upstream's reshape has it: images, identities."""
    for name, value in fields.items():
        if value.ndim != 1 or value.shape[0] not in (1, size):
            shape = tuple(value.shape)
            raise CheckpointError(f"{where}: statistics '{key[:60]}.{name[:40]}' have shape {shape}, not ({size},)")
    return {name: value.expand(size).clone() for name, value in fields.items()}
