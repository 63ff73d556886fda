"""Granite 3: Llama with a multiplier at each of four places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LlamaLikeJson, llama_like
from model.families._tensors import LLAMA, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0


FIXED: dict[str, object] = {}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The logits are divided by their multiplier."""
    c = read(config, FIELDS, FIXED)
    if not c.logits_scaling:
        raise ValueError("logits_scaling is 0: the logits are divided by it")
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        embedding_scale=c.embedding_multiplier,
        residual_scale=c.residual_multiplier,
        attention_scale=c.attention_multiplier,
        logits_scale=1.0 / c.logits_scaling,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        has_feed_forward_bias=c.mlp_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """As in every family like it."""
    return translated(LLAMA, "model.", name, tensor, config)
