"""Command R: both sub-layers in parallel behind one layer norm without bias, pairs turned side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LlamaLikeJson, llama_like
from model.families._tensors import LLAMA, Place, each_head, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    layer_norm_eps: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    use_qk_norm: bool = False
    logit_scale: float = 0.0625
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.self_attn.q_norm": each_head("layers.*.attention.q_norm"),
    "layers.*.self_attn.k_norm": each_head("layers.*.attention.k_norm"),
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Command R+ norms each head of queries and keys with weights of its own."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        is_interleaved=True,
        norm="layer_norm",
        norm_eps=c.layer_norm_eps,
        has_norm_bias=False,
        head_norm="each_head" if c.use_qk_norm else None,
        is_parallel=True,
        is_norm_shared=True,
        logits_scale=c.logit_scale,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names, and those of the norms of heads."""
    return translated(TENSORS, "model.", name, tensor, config)
