"""Mixtral: Mistral with a mixture of experts in each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig, Experts
from model.families._fields import read
from model.families._llama_like import LlamaLikeJson, llama_like
from model.families._tensors import LLAMA, Place, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    rope_scaling: dict[str, Any] | None = None
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.block_sparse_moe.gate": "layers.*.feed_forward.router",
    "layers.*.block_sparse_moe.experts.*.w1": "layers.*.feed_forward.experts.*.w1",
    "layers.*.block_sparse_moe.experts.*.w2": "layers.*.feed_forward.experts.*.w2",
    "layers.*.block_sparse_moe.experts.*.w3": "layers.*.feed_forward.experts.*.w3",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Every layer has the window, if there is one."""
    c = read(config, FIELDS, FIXED)
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        windows=(c.sliding_window,) * c.num_hidden_layers,
        experts=Experts(
            num_experts=c.num_local_experts,
            num_chosen=c.num_experts_per_tok,
            feed_forward_size=c.intermediate_size,
            is_renormalized=True,
        ),
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names, and the experts'."""
    return translated(TENSORS, "model.", name, tensor, config)
