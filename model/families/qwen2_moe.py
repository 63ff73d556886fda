"""Qwen 1.5 and 2 with experts, and one that all tokens share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig, Experts
from model.families._fields import read
from model.families._llama_like import LayerTypes, LlamaLikeJson, dense_layers, llama_like
from model.families._tensors import EXPERTS, LLAMA, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    num_key_value_heads: int | None = 16
    rms_norm_eps: float = 1e-6
    rope_scaling: dict[str, Any] | None = None
    qkv_bias: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 4
    num_experts: int = 60
    norm_topk_prob: bool = False
    shared_expert_intermediate_size: int = 5632
    layer_types: LayerTypes | None = None


# The attentions of `transformers` do not agree on which layers would have the window.
FIXED: dict[str, object] = {"use_sliding_window": False}
HARMLESS = frozenset({"sliding_window", "max_window_layers"})


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """All layers have experts, but those named and those between the steps."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    if "sliding_attention" in (c.layer_types or ()):
        raise ValueError("layer_types has sliding_attention, which is not supported in this family")
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        has_attention_bias=c.qkv_bias,
        experts=Experts(
            num_experts=c.num_experts,
            num_chosen=c.num_experts_per_tok,
            feed_forward_size=c.moe_intermediate_size,
            is_renormalized=c.norm_topk_prob,
            shared_size=c.shared_expert_intermediate_size,
        ),
        dense_layers=dense_layers(c.num_hidden_layers, c.decoder_sparse_step, c.mlp_only_layers),
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names, and the experts'."""
    return translated({**LLAMA, **EXPERTS}, "model.", name, tensor, config)
