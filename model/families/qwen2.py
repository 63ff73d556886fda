"""Qwen 2 and 2.5: biases on queries, keys and values; a sliding window in the upper layers, if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LayerTypes, LlamaLikeJson, layer_windows, llama_like
from model.families._tensors import LLAMA, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    num_key_value_heads: int | None = 32
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: LayerTypes | None = None


FIXED: dict[str, object] = {}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """`max_window_layers` is how many lower layers have no window."""
    c = read(config, FIELDS, FIXED)
    window = c.sliding_window if c.use_sliding_window else None
    upper = [bool(window) and layer >= c.max_window_layers for layer in range(c.num_hidden_layers)]
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        has_attention_bias=True,
        windows=layer_windows(window, c.layer_types, upper),
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """As in every family like it."""
    return translated(LLAMA, "model.", name, tensor, config)
