"""Qwen 3 with experts: queries and keys are normed in each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig, Experts
from model.families._fields import one_of, read
from model.families._llama_like import LlamaLikeJson, dense_layers, llama_like
from model.families._tensors import EXPERTS, HEAD_NORMS, LLAMA, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    head_dim: int | None = None
    num_key_value_heads: int | None = 4
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int | None = None
    num_local_experts: int | None = None  # its name since version 5 of transformers
    norm_topk_prob: bool = False


# The attentions of `transformers` do not agree on which layers would have the window.
FIXED: dict[str, object] = {"use_sliding_window": False}
HARMLESS = frozenset({"sliding_window", "max_window_layers"})


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """All layers have experts, but those named and those between the steps."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        head_norm="head",
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        experts=Experts(
            num_experts=one_of(128, num_experts=c.num_experts, num_local_experts=c.num_local_experts),
            num_chosen=c.num_experts_per_tok,
            feed_forward_size=c.moe_intermediate_size,
            is_renormalized=c.norm_topk_prob,
        ),
        dense_layers=dense_layers(c.num_hidden_layers, c.decoder_sparse_step, c.mlp_only_layers),
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names, those of the norms of heads, and the experts'."""
    return translated({**LLAMA, **HEAD_NORMS, **EXPERTS}, "model.", name, tensor, config)
