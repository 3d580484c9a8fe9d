"""The networks that a policy's config describes."""

from __future__ import annotations

from dataclasses import asdict

from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.policies.vision import ImageEncoder

__all__ = ["build_encoder", "build_network"]


def build_network(config: PolicyConfig) -> ConditionalUnet1D | TransformerForDiffusion:
    """The denoiser of this config, freshly initialised, on the default device.

    It is called as network(x: (N, T, D), t: (N,), condition: (N, C)) with D = `config.plan_dim`, C =
    `config.condition_dim`.

    Raises:
        ValueError: sizes that do not fit together.
    """
    features = config.obs_dim
    if config.transformer is not None:
        return TransformerForDiffusion(
            config.plan_dim, config.horizon, config.n_obs_steps, features if config.conditioning == "global" else 0,
            **asdict(config.transformer),
        )  # fmt: skip
    assert config.unet is not None  # the config has one of the two
    return ConditionalUnet1D(
        config.plan_dim,
        config.condition_dim if config.conditioning == "global" else 0,
        local_cond_dim=features if config.conditioning == "local" else 0,
        **asdict(config.unet),
    )


def build_encoder(config: PolicyConfig) -> ImageEncoder | None:
    """The image encoder of this config, freshly initialised, on the default device; None without cameras.

    Raises:
        ValueError: a crop that does not fit into the images, or other sizes that do not fit together.
    """
    return None if config.encoder is None else ImageEncoder(config.encoder, config.image_shapes)
