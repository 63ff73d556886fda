"""Llama 1 to 3.x, and what is stored as such: SmolLM, TinyLlama, Yi, Vicuna, DeepSeek's first models."""

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

    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


FIXED = {"rope_interleaved": False, "is_llama_config": True}  # SmolLM writes them


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Llama is what `llama_like` describes."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        has_feed_forward_bias=c.mlp_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """As in every family like it."""
    return translated(LLAMA, "model.", name, tensor, config)
