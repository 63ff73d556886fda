"""Gemma 2: Gemma with norms on both sides of a sub-layer, soft caps, a window in every second layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import activation, read
from model.families._llama_like import (
    LayerTypes,
    LlamaLikeJson,
    layer_windows,
    llama_like,
    most_layers,
    reciprocal_root,
)
from model.families._tensors import LLAMA, Place, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    num_key_value_heads: int | None = 4
    head_dim: int = 256
    hidden_act: str = ""  # not read by `transformers`
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: LayerTypes | None = None
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {}
HARMLESS = frozenset({"sliding_window_size"})  # an older name, which transformers does not read

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.post_attention_layernorm": "layers.*.attention_output_norm",
    "layers.*.pre_feedforward_layernorm": "layers.*.feed_forward_norm",
    "layers.*.post_feedforward_layernorm": "layers.*.feed_forward_output_norm",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The first, third, … layers have the window."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    if c.hidden_act not in ("", c.hidden_activation):
        raise ValueError(f"hidden_act is {c.hidden_act!r}, but hidden_activation is {c.hidden_activation!r}")
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        embedding_scale=c.hidden_size**0.5,
        norm_placement="sandwich",
        norm_eps=c.rms_norm_eps,
        norm_offset=1.0,
        attention_scale=reciprocal_root("query_pre_attn_scalar", c.query_pre_attn_scalar),
        attention_softcap=c.attn_logit_softcapping,
        windows=layer_windows(c.sliding_window, c.layer_types, most_layers(c.num_hidden_layers, 2)),
        activation=activation("hidden_activation", c.hidden_activation),
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        logits_softcap=c.final_logit_softcapping,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names but for the norms."""
    return translated(TENSORS, "model.", name, tensor, config)
