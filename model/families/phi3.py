"""Phi 3 and 4: Llama with fused projections, a sliding window, and a context stretched by longrope."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LlamaLikeJson, llama_like
from model.families._tensors import LLAMA, Place, gate_and_up, queries_keys_values, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    rms_norm_eps: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    original_max_position_embeddings: int = 4096
    sliding_window: int | None = None


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.self_attn.qkv_proj": queries_keys_values,
    "layers.*.mlp.gate_up_proj": gate_and_up,
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """A context stretched by longrope is served up to its original length."""
    c = read(config, FIELDS, FIXED)
    scaling = c.rope_scaling
    if scaling and scaling.get("type") in ("su", "yarn"):  # as Phi 3's first files call longrope
        scaling = {**scaling, "type": "longrope"}
    return llama_like(
        c,
        rope_scaling=scaling,
        partial_rotary_factor=c.partial_rotary_factor,
        original_max_positions=c.original_max_position_embeddings,
        norm_eps=c.rms_norm_eps,
        windows=(c.sliding_window,) * c.num_hidden_layers,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names but for what is fused."""
    return translated(TENSORS, "model.", name, tensor, config)
