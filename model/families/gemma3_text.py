"""Gemma 3, its text part: Gemma 2 with normed heads in place of caps, and other angles where a window is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import NumLayers, activation, read
from model.families._llama_like import (
    LayerTypes,
    LlamaLikeJson,
    layer_windows,
    llama_like,
    most_layers,
    reciprocal_root,
)
from model.families._rotary import rotation
from model.families._tensors import HEAD_NORMS, LLAMA, Place, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json. The published ones leave out what is as in the 4B."""

    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: NumLayers = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 131_072
    head_dim: int = 256
    hidden_act: str = ""  # not read by `transformers`
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 6
    layer_types: LayerTypes | None = None
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True


# `transformers` writes the cap of attention's scores, and does not apply it.
FIXED: dict[str, object] = {"attn_logit_softcapping": None, "use_bidirectional_attention": False}
HARMLESS = frozenset({"_sliding_window_pattern"})  # written beside `layer_types`, and not read

TENSORS: dict[str, Place] = {
    **LLAMA,
    **HEAD_NORMS,
    "layers.*.post_attention_layernorm": "layers.*.attention_output_norm",
    "layers.*.pre_feedforward_layernorm": "layers.*.feed_forward_norm",
    "layers.*.post_feedforward_layernorm": "layers.*.feed_forward_output_norm",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Every `sliding_window_pattern`-th layer sees everything, and is stretched by `rope_scaling`."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    if c.hidden_act not in ("", c.hidden_activation):
        raise ValueError(f"hidden_act is {c.hidden_act!r}, but hidden_activation is {c.hidden_activation!r}")
    pattern = most_layers(c.num_hidden_layers, c.sliding_window_pattern)
    windows = layer_windows(c.sliding_window, c.layer_types, pattern)
    described = llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        embedding_scale=c.hidden_size**0.5,
        norm_placement="sandwich",
        norm_eps=c.rms_norm_eps,
        norm_offset=1.0,
        head_norm="head",
        attention_scale=reciprocal_root("query_pre_attn_scalar", c.query_pre_attn_scalar),
        windows=windows,
        activation=activation("hidden_activation", c.hidden_activation),
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        logits_softcap=c.final_logit_softcapping,
    )
    local, _ = rotation(c.head_dim, c.rope_local_base_freq, max_positions=c.max_position_embeddings)
    turned = zip(described.rotations, windows, strict=True)
    return replace(described, rotations=tuple(local if window else r for r, window in turned))


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names but for the norms."""
    return translated(TENSORS, "model.", name, tensor, config)
