"""The Transformer laid out for inference: its cross-attention folded into a few vectors per condition token.

The condition tokens are few (the timestep and To observations) and do not depend on x. With a token's key k and value v
in one head (d wide, H of them), and the query of a normalised action y being W_q y + b_q:

    score  = k . (W_q y + b_q) / sqrt(d)  = K . y + c,    K = W_q' k / sqrt(d),  c = k . b_q / sqrt(d)
    output = b_o + sum_heads W_o sum_tokens a v = sum_heads sum_tokens a V,  V = W_o v + b_o / H,  as sum_tokens a = 1

so the projections of query and output are gone. The timestep's K, V and c are tables, the observations' the features.
The gain and bias of every normalisation go into what follows it: W (g z + b) = (W g) z + W b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from diffpolicy_spec.policies.inference.matrix import Made, Matrix
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.runtime.network import Watch

__all__ = ["InferenceTransformer"]


class InferenceTransformer:
    """TransformerForDiffusion, called as an InferenceNetwork.

    Args:
        network: stays the owner of the weights; it is read again when they change. n_cond_layers must be 0.
        num_train_timesteps: of the training chain; t is below it.
        dtype: of weights and activations; K, V and c are computed in float32.

    Raises:
        ValueError: n_cond_layers > 0: condition tokens that depend on timestep and observations together.
    """

    def __init__(
        self, network: TransformerForDiffusion, num_train_timesteps: int, dtype: torch.dtype = torch.float32
    ) -> None:
        if isinstance(network.encoder, nn.TransformerEncoder):
            raise ValueError("n_cond_layers > 0: condition tokens depend on timestep and observations together")
        self.network, self.num_train_timesteps, self.dtype = network, num_train_timesteps, dtype
        blocks = list(network.decoder.layers)
        self._heads, self._width = blocks[0].self_attn.num_heads, blocks[0].self_attn.embed_dim
        self._causal = network.mask is not None
        self._read = Matrix(lambda: network.input_emb.weight, None, dtype)
        self._place = Made(lambda: network.pos_emb[0] + network.input_emb.bias, dtype)  # (T, E)
        self._table = Made(lambda: self._of_steps()[0], dtype)  # (timesteps, L, 2, H, 1, E), K and V
        self._table_c = Made(lambda: self._of_steps()[1])  # (timesteps, L, H, 1)
        self._layers = [_Layer(block, dtype) for block in blocks]
        self._head = Matrix(*_after(network.ln_f, network.head), dtype)
        self._made: list[Made | Matrix] = [self._read, self._place, self._table, self._table_c, self._head]
        self._made += [matrix for layer in self._layers for matrix in layer.matrices]
        self._watch = Watch(network)
        self._refresh()

    @property
    def nbytes(self) -> int:
        """Held beside the network's parameters: weights but for cross-attention's, and tables."""
        return sum(made.nbytes for made in self._made)

    def features(self, condition: Tensor) -> Tensor:
        """(B, To * Do) -> (B, 2 L H To E + L H To): K and V, then c, of the observations' tokens.

        Raises:
            ValueError: a condition of the wrong shape.
        """
        network = self.network
        if condition.shape[1:] != (network.global_cond_dim,):
            raise ValueError(f"condition must be (B, {network.global_cond_dim}), got {tuple(condition.shape)}")
        self._refresh()
        if network.cond_obs_emb is None:
            return condition.float()
        with torch.no_grad():
            observations = condition.to(network.pos_emb.dtype).unflatten(1, (network.obs_tokens, network.cond_dim))
            kv, c = _fold(network, network.cond_obs_emb(observations) + network.cond_pos_emb[:, 1:])
        return torch.cat([kv.flatten(1), c.flatten(1)], dim=1)

    def __call__(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """x: (N, T, Da), t: (N,), features: (N, F) -> (N, T, Da)."""
        N, E, H, L = x.shape[0], self._width, self._heads, len(self._layers)
        numbers = L * H * self.network.obs_tokens
        kv, c = features.split([2 * numbers * E, numbers], dim=1)
        kv = torch.cat([self._table.value[t], kv.reshape(N, L, 2, H, -1, E).to(self.dtype)], dim=4).flatten(3, 4)
        c = torch.cat([self._table_c.value[t], c.reshape(N, L, H, -1)], dim=3)
        mask = self.network.memory_mask
        c = c[:, :, None] if mask is None else c[:, :, None] + mask[:, None]
        c = c.expand(N, L, x.shape[1], H, -1).flatten(3).to(self.dtype)  # (N, L, T, H (1 + To))
        h = self._read(x.to(self.dtype)) + self._place.value
        for i, layer in enumerate(self._layers):
            h = layer(h, kv[:, i, 0], kv[:, i, 1], c[:, i], H, self._causal)
        return self._head(_normal(h)).float()

    def _of_steps(self) -> tuple[Tensor, Tensor]:
        """K and V, and c, of every timestep."""
        place = self.network.cond_pos_emb[:, :1]
        steps = self.network.time_emb(torch.arange(self.num_train_timesteps, device=place.device))
        return _fold(self.network, steps[:, None].to(place.dtype) + place)

    def _refresh(self) -> None:
        # Ordinary tensors, also when called in inference mode: they are written to again.
        with torch.inference_mode(False), torch.no_grad():
            if self._watch.changed():
                for made in self._made:
                    made.refresh()


class _Layer:
    """A decoder layer: self-attention, folded cross-attention, perceptron; each adds to what it is given."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        out, down = block.self_attn.out_proj, block.linear2
        self.qkv = Matrix(*_after(block.norm1, block.self_attn, "in_proj_"), dtype)
        self.out = Matrix(lambda: out.weight, lambda: out.bias, dtype)
        self.up = Matrix(*_after(block.norm3, block.linear1), dtype)
        self.down = Matrix(lambda: down.weight, lambda: down.bias, dtype)
        self.matrices = [self.qkv, self.out, self.up, self.down]

    def __call__(self, h: Tensor, K: Tensor, V: Tensor, c: Tensor, heads: int, causal: bool) -> Tensor:
        """h: (N, T, E), K and V: (N, H S, E), c: (N, T, H S)."""
        q, k, v = self.qkv(_normal(h)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        h = h + self.out(scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))
        a = torch.baddbmm(c, _normal(h), K.mT).unflatten(2, (heads, -1)).softmax(-1).flatten(2)
        h = torch.baddbmm(h, a, V)
        return h + self.down(gelu(self.up(_normal(h))))


def _normal(h: Tensor) -> Tensor:
    return layer_norm(h, h.shape[-1:])


def _after(norm: Any, linear: Any, prefix: str = "") -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """W and b that take z, where the network's own take g z + b of a normalisation."""

    def weight() -> Tensor:
        return getattr(linear, prefix + "weight").float()

    def bias() -> Tensor:
        return getattr(linear, prefix + "bias").float()

    return lambda: weight() * norm.weight.float(), lambda: bias() + weight() @ norm.bias.float()


def _fold(network: TransformerForDiffusion, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """K and V: (B, L, 2, H, S, E), and c: (B, L, H, S), float32, of condition tokens (B, S, E) before the encoder."""
    memory = network.encoder(tokens).float()
    kv, c = [], []
    for block in network.decoder.layers:
        attention, norm = block.multihead_attn, block.norm2
        H, d = attention.num_heads, attention.head_dim
        w_q, w_k, w_v = attention.in_proj_weight.float().view(3, H, d, -1)
        b_q, b_k, b_v = attention.in_proj_bias.float().view(3, H, d)
        w_o, b_o = attention.out_proj.weight.float().view(-1, H, d), attention.out_proj.bias.float()
        k = (torch.einsum("bse,hde->bhsd", memory, w_k) + b_k[:, None]) / d**0.5
        v = torch.einsum("bse,hde->bhsd", memory, w_v) + b_v[:, None]
        keys = torch.einsum("bhsd,hde->bhse", k, w_q)
        values = torch.einsum("bhsd,ehd->bhse", v, w_o) + b_o / H
        kv.append(torch.stack([keys * norm.weight.float(), values], dim=1))
        c.append(torch.einsum("bhsd,hd->bhs", k, b_q) + keys @ norm.bias.float())
    return torch.stack(kv, dim=1), torch.stack(c, dim=1)
