"""Phi 1 to 2: both sub-layers in parallel behind one layer norm, biases everywhere, no gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LlamaLikeJson, llama_like
from model.families._tensors import LLAMA, Place, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 0.5
    qk_layernorm: bool = False


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.self_attn.dense": "layers.*.attention.wo",
    "layers.*.self_attn.q_layernorm": "layers.*.attention.q_norm",
    "layers.*.self_attn.k_layernorm": "layers.*.attention.k_norm",
    "layers.*.mlp.fc1": "layers.*.feed_forward.w1",
    "layers.*.mlp.fc2": "layers.*.feed_forward.w2",
    "final_layernorm": "final_norm",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """A part of each head is turned."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        partial_rotary_factor=c.partial_rotary_factor,
        norm="layer_norm",
        norm_eps=c.layer_norm_eps,
        head_norm="head" if c.qk_layernorm else None,
        is_parallel=True,
        is_norm_shared=True,
        is_gated=False,
        has_attention_bias=True,
        has_attention_output_bias=True,
        has_feed_forward_bias=True,
        has_output_bias=True,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Some of Llama's names, and its own."""
    return translated(TENSORS, "model.", name, tensor, config)
