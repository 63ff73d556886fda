"""Gemma: scaled embeddings, norms whose weights are stored less 1, gated GELU."""

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

    num_key_value_heads: int | None = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str | None = None
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The head's size is a field of its own; the embeddings grow by the root of their size."""
    c = read(config, FIELDS, FIXED)
    if c.hidden_activation not in (None, c.hidden_act):
        raise ValueError(f"hidden_activation is {c.hidden_activation!r}, but hidden_act is {c.hidden_act!r}")
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        embedding_scale=c.hidden_size**0.5,
        norm_eps=c.rms_norm_eps,
        norm_offset=1.0,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """As in every family like it."""
    return translated(LLAMA, "model.", name, tensor, config)
