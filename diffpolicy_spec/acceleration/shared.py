"""Our own network around the parameters of a live one, for the layouts that make calls quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffpolicy_spec.checkpoints.lerobot.names import unet_name_to_lerobot
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.policies.unet import ConditionalUnet1D

__all__ = ["Shared", "share", "unwrapped"]

_LOCAL = "local_cond_encoder.0.blocks.0.block.0.weight"
_PLACES = ("diffusion_policy.", "robomimic.", "lerobot.")


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside what torch.compile makes of it."""
    inner = getattr(network, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else network


class Shared:
    """A live network and ours, which has the live one's Parameter objects and no others.

    Attributes:
        live: the network whose parameters they are; it is called by nobody here.
        network: ours, in evaluation mode, whatever mode the live one is in.
    """

    def __init__(self, live: nn.Module, network: nn.Module, names: Callable[[str], str]) -> None:
        self.live, self.network = live, network.eval()
        self._tied: list[tuple[dict[str, Any], str, dict[str, Any], str]] = []
        for kind in ("_parameters", "_buffers"):
            for path, module in network.named_modules():
                for leaf, value in getattr(module, kind).items():
                    if value is None:
                        continue
                    where, _, there = names(f"{path}.{leaf}" if path else leaf).rpartition(".")
                    self._tied.append((getattr(module, kind), leaf, getattr(live.get_submodule(where), kind), there))
        self._modules = list(live.modules())
        self._children = [(m._modules, name, child) for m in self._modules for name, child in m._modules.items()]
        self._numbers = [len(m._modules) for m in self._modules]
        small = [(where, name) for where, name, _, _ in self._tied if where[name].ndim == 1]
        self._probes = [small[i] for i in sorted({0, len(small) // 2, len(small) - 1})] if small else []
        self.tie()
        self._seen = self._look()

    def tie(self) -> None:
        """Take over parameters and buffers of the live network that have been replaced by others."""
        for ours, name, theirs, there in self._tied:
            if ours[name] is not theirs[there]:
                ours[name] = theirs[there]

    def written_unseen(self) -> bool:
        """Whether weights have been written to in a way that torch does not count, such as `p.data.copy_(...)`, since
        this was asked last. Three of the smallest are looked at: training, averaging and copying change them all."""
        before, self._seen = self._seen, self._look()
        return any(
            place == now_at and not torch.equal(value, now)
            for (place, value), (now_at, now) in zip(before, self._seen, strict=True)
        )

    def _look(self) -> list[tuple[tuple[int, int], Tensor]]:
        """Where the probes are, how often torch has seen them written to, and what they are."""
        with torch.inference_mode(False), torch.no_grad():
            tensors = [where[name].detach() for where, name in self._probes]
            return [((p.data_ptr(), -1 if p.is_inference() else p._version), p.clone()) for p in tensors]

    def holds(self) -> bool:
        """Whether the live network is still what it was read as: its modules, no hooks, float32 weights."""
        if any(parent.get(name) is not child for parent, name, child in self._children):
            return False
        if [len(m._modules) for m in self._modules] != self._numbers:
            return False
        plain = not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in self._modules)
        return plain and all(theirs[there].dtype == torch.float32 for _, _, theirs, there in self._tied)


def share(live: nn.Module) -> Shared | None:
    """Our network on a live one's parameters; None where it is not one of the published networks, unchanged.

    Sizes are read from shapes and modules. The two are then called side by side, once, on a few random rows: a live
    network that computes something else is called as it is.
    """
    read = _READERS.get(type(live).__name__)
    if read is None or not (type(live).__module__ + ".").startswith(_PLACES):
        return None
    try:
        with torch.device("meta"):
            network, names = read(live)
        if not _fit(network, live, names):
            return None
        shared = Shared(live, network, names)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
        return None  # built otherwise than published: nothing is lost, it is called as it is
    return shared if shared.holds() and _agree(shared) else None


def _read_unet(live: Any) -> tuple[nn.Module, Callable[[str], str]]:
    state = live.state_dict()
    lerobot = "down_modules.0.0.conv1.block.0.weight" in state
    names = unet_name_to_lerobot if lerobot else str

    def shape(name: str) -> torch.Size:
        return state[names(name)].shape

    levels = len(live.down_modules)
    down_dims = [shape(f"down_modules.{i}.0.blocks.0.block.0.weight")[0] for i in range(levels)]
    embed = shape("diffusion_step_encoder.3.weight")[0]
    film = shape("down_modules.0.0.cond_encoder.1.weight")
    network = ConditionalUnet1D(
        input_dim=shape("final_conv.1.weight")[0],
        global_cond_dim=film[1] - embed,
        diffusion_step_embed_dim=embed,
        down_dims=down_dims,
        kernel_size=shape("down_modules.0.0.blocks.0.block.0.weight")[2],
        n_groups=live.get_submodule(names("down_modules.0.0.blocks.0.block.1")).num_groups,
        cond_predict_scale=film[0] == 2 * down_dims[0],
        local_cond_dim=shape(_LOCAL)[1] if _LOCAL in state else 0,
    )
    return network, names


def _read_transformer(live: Any) -> tuple[nn.Module, Callable[[str], str]]:
    if not live.time_as_cond or live.encoder_only or isinstance(live.encoder, nn.TransformerEncoder):
        raise ValueError("we have no layout for this variant")
    horizon, width = live.pos_emb.shape[1:]
    condition = live.cond_obs_emb
    network = TransformerForDiffusion(
        input_dim=live.input_emb.in_features,
        horizon=horizon,
        n_obs_steps=live.cond_pos_emb.shape[1] - 1,
        cond_dim=0 if condition is None else condition.in_features,
        n_layer=len(live.decoder.layers),
        n_head=live.decoder.layers[0].self_attn.num_heads,
        n_emb=width,
        p_drop_emb=0.0,
        p_drop_attn=0.0,
        causal_attn=live.mask is not None,
    )
    return network, str


_READERS: dict[str, Callable[[Any], tuple[nn.Module, Callable[[str], str]]]] = {
    "ConditionalUnet1D": _read_unet,
    "DiffusionConditionalUnet1d": _read_unet,
    "TransformerForDiffusion": _read_transformer,
}


def _fit(network: nn.Module, live: nn.Module, names: Callable[[str], str]) -> bool:
    """Whether both have the same tensors; `_dummy_variable` is empty."""
    ours = {names(name): value.shape for name, value in network.state_dict().items()}
    theirs = {n: v.shape for n, v in live.state_dict().items() if not n.endswith("_dummy_variable")}
    return ours == theirs


def _agree(shared: Shared) -> bool:
    """Whether both give the same on three random rows."""
    live, network = shared.live, cast(Any, shared.network)
    device = next(network.parameters()).device
    length = network.horizon if isinstance(network, TransformerForDiffusion) else 2 ** len(network.down_modules)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, length, network.input_dim), generator=generator).to(device)
    t = torch.tensor([0, 1, 7], device=device)
    local = 0 if isinstance(network, TransformerForDiffusion) else network.local_cond_dim
    condition = torch.randn((3, network.global_cond_dim + length * local), generator=generator).to(device)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        ours = network(x, t, condition if condition.shape[1] else None)
        theirs = _called(live, network, x, t, condition)
    return bool((ours - theirs).abs().max() <= 1e-3 * (1 + theirs.abs().max()))


def _called(live: Any, network: Any, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    if isinstance(network, TransformerForDiffusion):
        tokens = condition.unflatten(1, (network.obs_tokens, network.cond_dim)) if network.cond_dim else None
        return live(x, t, tokens)
    given = {}
    if network.global_cond_dim:
        given["global_cond"] = condition[:, : network.global_cond_dim]
    if network.local_cond_dim:
        given["local_cond"] = condition[:, network.global_cond_dim :].unflatten(1, (-1, network.local_cond_dim))
    return live(x, t, **given)
