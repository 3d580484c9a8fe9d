"""What is trained: the denoiser, and the image encoder before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffpolicy_spec.policies.build import build_encoder, build_network
from diffpolicy_spec.policies.conditioning import condition
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.normalizer import LinearNormalizer

__all__ = ["DenoisingModel", "draws_in_training", "parameter_groups"]


class DenoisingModel(nn.Module):
    """Denoiser and encoder of a policy, freshly initialised.

    Args:
        config: of the policy.
        normalizer: for the images.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(self, config: PolicyConfig, normalizer: LinearNormalizer) -> None:
        super().__init__()
        self.network, self.encoder = build_network(config), build_encoder(config)
        self.config = config
        for i, camera in enumerate(config.image_shapes):
            for name in ("scale", "offset"):
                self.register_buffer(f"_{name}{i}", normalizer.fields(camera)[name][:, None, None], persistent=False)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        given: Tensor,
        images: Mapping[str, Tensor] | None = None,
        crops: Sequence[int] | None = None,
    ) -> Tensor:
        """What the denoiser says of x_t: (N, T, D) at t: (N,); the others as in `Batch`."""
        if self.encoder is not None:
            assert images is not None
            given = self._with_features(given, images, crops)
        return self.network(x_t, t, given)

    def _with_features(self, given: Tensor, images: Mapping[str, Tensor], crops: Sequence[int] | None) -> Tensor:
        config = self.config
        keys = [key for key in config.feature_order if key in config.obs_dims]
        low = given.unflatten(1, (config.n_obs_steps, -1)) if keys else given
        features = dict(zip(keys, low.split([config.obs_dims[key] for key in keys], dim=-1), strict=True))
        assert self.encoder is not None
        seen = {camera: self._normalized(i, images[camera]) for i, camera in enumerate(config.image_shapes)}
        features |= self.encoder(seen, [torch.Generator().manual_seed(seed) for seed in crops] if crops else None)
        return condition(torch.cat([features[key] for key in config.feature_order], dim=-1), config)[0]

    def _normalized(self, i: int, images: Tensor) -> Tensor:
        """(N, To, H, W, C) uint8 to (N, To, C, H, W), as the policy has it."""
        scale, offset = self.get_buffer(f"_scale{i}"), self.get_buffer(f"_offset{i}")
        return images.movedim(-1, -3).to(torch.float32) / 255 * scale + offset


def parameter_groups(
    model: DenoisingModel, weight_decay: float, encoder_weight_decay: float | None
) -> list[dict[str, object]]:
    """The optimiser's groups; a Transformer's biases, normalisations and embeddings do not decay (Chi et al. 2023)."""
    named = list(model.network.named_parameters())
    if model.config.transformer is None:
        groups: list[dict[str, object]] = [{"params": [p for _, p in named], "weight_decay": weight_decay}]
    else:
        # What is left with two axes and more are weights of linear layers and of attention.
        decays = {name for name, p in named if p.ndim >= 2 and not name.endswith("pos_emb")}
        groups = [
            {"params": [p for name, p in named if name in decays], "weight_decay": weight_decay},
            {"params": [p for name, p in named if name not in decays], "weight_decay": 0.0},
        ]
    if model.encoder is not None:
        decay = weight_decay if encoder_weight_decay is None else encoder_weight_decay
        groups.append({"params": list(model.encoder.parameters()), "weight_decay": decay})
    return groups


def draws_in_training(model: nn.Module) -> bool:
    """Whether a call of it in training draws random numbers of torch's: dropout."""
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    return any(rates + [m.dropout for m in model.modules() if isinstance(m, nn.MultiheadAttention)])
