"""OLMo 2: each sub-layer's output is normed before it is added; queries and keys over all heads at once."""

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

    rms_norm_eps: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.self_attn.q_norm": "layers.*.attention.q_norm.norm",
    "layers.*.self_attn.k_norm": "layers.*.attention.k_norm.norm",
    "layers.*.post_attention_layernorm": "layers.*.attention_output_norm",
    "layers.*.post_feedforward_layernorm": "layers.*.feed_forward_output_norm",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """No norm stands before a sub-layer."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        norm_placement="output",
        head_norm="all_heads",
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names but for the norms."""
    return translated(TENSORS, "model.", name, tensor, config)
