"""Falcon: sub-layers in parallel behind one norm (7B) or two (40B), or one after the other (RW)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, activation, one_of, read
from model.families._llama_like import head_size
from model.families._rotary import alibi_slopes, rotation
from model.families._tensors import Place, queries_keys_values_by_group, translated


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json. `n_embed`, `n_layer`, `n_head` and `n_head_kv` are older names."""

    vocab_size: int
    hidden_size: int | None = None
    n_embed: int | None = None
    num_hidden_layers: NumLayers | None = None
    n_layer: NumLayers | None = None
    num_attention_heads: int | None = None
    n_head: int | None = None
    num_kv_heads: int | None = None
    n_head_kv: int | None = None
    ffn_hidden_size: int | None = None
    num_ln_in_parallel_attn: int | None = None
    layer_norm_epsilon: float = 1e-5
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    bias: bool = False
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    activation: str = "gelu"
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {"apply_residual_connection_post_layernorm": False}

TENSORS: dict[str, Place] = {
    "word_embeddings": "embedding",
    "h.*.input_layernorm": "layers.*.attention_norm",
    "h.*.ln_attn": "layers.*.attention_norm",
    "h.*.self_attention.query_key_value": queries_keys_values_by_group,
    "h.*.self_attention.dense": "layers.*.attention.wo",
    "h.*.post_attention_layernorm": "layers.*.feed_forward_norm",
    "h.*.ln_mlp": "layers.*.feed_forward_norm",
    "h.*.mlp.dense_h_to_4h": "layers.*.feed_forward.w1",
    "h.*.mlp.dense_4h_to_h": "layers.*.feed_forward.w2",
    "ln_f": "final_norm",
    "lm_head": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """`new_decoder_architecture` groups the keys; without it they are one, or as many as the queries."""
    c = read(config, FIELDS, FIXED)
    hidden_size = one_of(hidden_size=c.hidden_size, n_embed=c.n_embed)
    num_layers = one_of(num_hidden_layers=c.num_hidden_layers, n_layer=c.n_layer)
    num_heads = one_of(num_attention_heads=c.num_attention_heads, n_head=c.n_head)
    head_dim = head_size(hidden_size, num_heads)
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(c, num_heads),
        head_dim=head_dim,
        feed_forward_size=4 * hidden_size if c.ffn_hidden_size is None else c.ffn_hidden_size,
        norm="layer_norm",
        norm_placement="pre",
        norm_eps=c.layer_norm_epsilon,
        is_parallel=c.parallel_attn,
        is_norm_shared=c.parallel_attn and _num_norms(c) == 1,
        activation=activation("activation", c.activation),
        is_gated=False,
        has_attention_bias=c.bias,
        has_attention_output_bias=c.bias,
        has_feed_forward_bias=c.bias,
        is_output_tied=c.tie_word_embeddings,
        **_positions(c, num_layers, num_heads, head_dim),
    )


def _num_kv_heads(c: FIELDS, num_heads: int) -> int:
    if c.new_decoder_architecture:
        return one_of(num_kv_heads=c.num_kv_heads, n_head_kv=c.n_head_kv, otherwise=num_heads)
    return 1 if c.multi_query else num_heads


def _num_norms(c: FIELDS) -> int:
    """How many norms a parallel layer has before its two sub-layers."""
    if c.new_decoder_architecture and not c.parallel_attn:
        raise ValueError("parallel_attn is False, must be True with new_decoder_architecture")
    num_norms = c.num_ln_in_parallel_attn or (2 if c.new_decoder_architecture else 1)
    if num_norms != 1 and not (num_norms == 2 and c.new_decoder_architecture):
        raise ValueError(
            f"num_ln_in_parallel_attn is {num_norms}, must be 1, or 2 with new_decoder_architecture"
        )
    return num_norms


def _positions(c: FIELDS, num_layers: int, num_heads: int, head_dim: int) -> dict[str, Any]:
    """Rotary, or ALiBi as Falcon's first models were trained with it: rounded to bfloat16."""
    if c.alibi:
        slopes = tuple(rounded_to_bfloat16(slope) for slope in alibi_slopes(num_heads))
        return {
            "max_positions": c.max_position_embeddings,
            "positions": "alibi",
            "alibi_slopes": slopes,
            "is_alibi_rounded": True,
        }
    turned, max_positions = rotation(
        head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_position_embeddings
    )
    return {"max_positions": max_positions, "positions": "rotary", "rotations": (turned,) * num_layers}


def rounded_to_bfloat16(value: float) -> float:
    """The nearest number that bfloat16 has."""
    return torch.tensor(value, dtype=torch.float32).bfloat16().item()


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values are stored as one, group by group."""
    return translated(TENSORS, "transformer.", name, tensor, config)
