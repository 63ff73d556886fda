"""GPT-J: both sub-layers in parallel behind one norm; pairs of neighbouring elements are turned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, activation, read
from model.families._llama_like import head_size
from model.families._rotary import rotation
from model.families._tensors import Place, translated


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: NumLayers
    n_head: int
    rotary_dim: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False


FIXED: dict[str, object] = {"rotary": True, "scale_attn_weights": True}

TENSORS: dict[str, Place] = {
    "wte": "embedding",
    "h.*.ln_1": "layers.*.attention_norm",
    "h.*.attn": "",  # a constant: which keys are later
    "h.*.attn.q_proj": "layers.*.attention.wq",
    "h.*.attn.k_proj": "layers.*.attention.wk",
    "h.*.attn.v_proj": "layers.*.attention.wv",
    "h.*.attn.out_proj": "layers.*.attention.wo",
    "h.*.mlp.fc_in": "layers.*.feed_forward.w1",
    "h.*.mlp.fc_out": "layers.*.feed_forward.w2",
    "ln_f": "final_norm",
    "lm_head": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Attention has no biases, the rest has, the output too."""
    c = read(config, FIELDS, FIXED)
    turned, max_positions = rotation(c.rotary_dim, 10_000.0, max_positions=c.n_positions, is_interleaved=True)
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        num_layers=c.n_layer,
        num_heads=c.n_head,
        num_kv_heads=c.n_head,
        head_dim=head_size(c.n_embd, c.n_head),
        feed_forward_size=4 * c.n_embd if c.n_inner is None else c.n_inner,
        max_positions=max_positions,
        positions="rotary",
        rotations=(turned,) * c.n_layer,
        norm="layer_norm",
        norm_placement="pre",
        norm_eps=c.layer_norm_epsilon,
        is_parallel=True,
        is_norm_shared=True,
        activation=activation("activation_function", c.activation_function),
        is_gated=False,
        has_attention_bias=False,
        has_attention_output_bias=False,
        has_feed_forward_bias=True,
        is_output_tied=c.tie_word_embeddings,
        has_output_bias=True,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Only the names differ."""
    return translated(TENSORS, "transformer.", name, tensor, config)
