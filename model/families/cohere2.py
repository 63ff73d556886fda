"""Command R7B: Command R with sliding windows; the layers that see everything are told no positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LayerTypes, LlamaLikeJson, layer_windows, llama_like, most_layers
from model.families._tensors import LLAMA, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    head_dim: int | None = None
    layer_norm_eps: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    layer_types: LayerTypes | None = None
    logit_scale: float = 0.0625
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {}
HARMLESS = frozenset({"_sliding_window_pattern"})  # written beside `layer_types`, and not read


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Every `sliding_window_pattern`-th layer sees everything."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    pattern = most_layers(c.num_hidden_layers, c.sliding_window_pattern)
    windows = layer_windows(c.sliding_window, c.layer_types, pattern)
    described = llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        is_interleaved=True,
        windows=windows,
        norm="layer_norm",
        norm_eps=c.layer_norm_eps,
        has_norm_bias=False,
        is_parallel=True,
        is_norm_shared=True,
        logits_scale=c.logit_scale,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
    )
    turned = zip(described.rotations, windows, strict=True)
    return replace(described, rotations=tuple(r if window else None for r, window in turned))


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """As in every family like it."""
    return translated(LLAMA, "model.", name, tensor, config)
