"""StableLM: layer norms, a part of each head is turned; its 12B norms heads, sub-layers in parallel."""

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

    num_key_value_heads: int | None = 32
    layer_norm_eps: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 0.25
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.self_attn.q_layernorm.norms.*": "layers.*.attention.q_norm.norms.*",
    "layers.*.self_attn.k_layernorm.norms.*": "layers.*.attention.k_norm.norms.*",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """In parallel, both sub-layers are behind one norm."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        partial_rotary_factor=c.partial_rotary_factor,
        norm="layer_norm",
        norm_eps=c.layer_norm_eps,
        head_norm="each_head" if c.qk_layernorm else None,
        is_parallel=c.use_parallel_residual,
        is_norm_shared=c.use_parallel_residual,
        has_attention_bias=c.use_qkv_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names, and those of the norms of heads."""
    return translated(TENSORS, "model.", name, tensor, config)
