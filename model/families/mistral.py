"""Mistral 7B and its kin: Llama with fewer key heads, and a sliding window in its first version."""

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

    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    sliding_window: int | None = 4096


FIXED: dict[str, object] = {}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Every layer has the window."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        windows=(c.sliding_window,) * c.num_hidden_layers,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """As in every family like it."""
    return translated(LLAMA, "model.", name, tensor, config)
