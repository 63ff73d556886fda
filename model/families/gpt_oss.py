"""gpt-oss: experts with clamped gates, attention with sinks, and a window in every second layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from torch import Tensor

from model.config import DecoderConfig, Experts
from model.families._fields import read
from model.families._llama_like import LayerTypes, LlamaLikeJson, layer_windows, llama_like, most_layers
from model.families._tensors import LLAMA, Parts, Place, translated

_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    num_key_value_heads: int | None = 8
    head_dim: int | None = 64
    rms_norm_eps: float = 1e-5
    rope_theta: float = 150_000.0
    rope_scaling: dict[str, Any] | None = msgspec.field(default_factory=lambda: dict(_YARN))
    sliding_window: int | None = 128
    layer_types: LayerTypes | None = None
    num_experts_per_tok: int = 4
    experts_per_token: int | None = None
    num_local_experts: int = 128


# The first published files hold what is built in.
FIXED: dict[str, object] = {
    "attention_bias": True,
    "initial_context_length": 4096,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}


def _experts(leaf: str, *places: tuple[str, slice]) -> Place:
    """One tensor of all experts, stored as [num_experts, in, out], or a bias as [num_experts, out]."""

    def parts(tensor: Tensor, config: DecoderConfig) -> Parts:
        for expert, stored in enumerate(tensor):
            for place, columns in places:
                part = stored[..., columns]
                name = f"layers.*.feed_forward.experts.{expert}.{place}.{leaf}"
                yield name, part.t() if leaf == "weight" else part

    return parts


_GATE, _UP, _ALL = slice(0, None, 2), slice(1, None, 2), slice(None)
TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.self_attn.sinks": "layers.*.attention.sinks",
    "layers.*.mlp.router": "layers.*.feed_forward.router",
    "layers.*.mlp.experts.gate_up_proj": _experts("weight", ("w1", _GATE), ("w3", _UP)),
    "layers.*.mlp.experts.gate_up_proj_bias": _experts("bias", ("w1", _GATE), ("w3", _UP)),
    "layers.*.mlp.experts.down_proj": _experts("weight", ("w2", _ALL)),
    "layers.*.mlp.experts.down_proj_bias": _experts("bias", ("w2", _ALL)),
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The gate is x sigmoid(1.702 x), whatever `hidden_act` says: it must say silu."""
    c = read(config, FIELDS, FIXED)
    if c.hidden_act != "silu":
        raise ValueError(f"hidden_act is {c.hidden_act!r}, must be 'silu'")
    if c.experts_per_token not in (None, c.num_experts_per_tok):
        raise ValueError(
            f"experts_per_token is {c.experts_per_token}, but num_experts_per_tok is {c.num_experts_per_tok}"
        )
    return llama_like(
        c,
        head_dim=c.head_dim,
        rope_scaling=c.rope_scaling,
        norm_eps=c.rms_norm_eps,
        has_attention_sinks=True,
        windows=layer_windows(c.sliding_window, c.layer_types, most_layers(c.num_hidden_layers, 2)),
        has_attention_bias=True,
        has_attention_output_bias=True,
        activation="quick_gelu",
        gate_limit=7.0,
        has_feed_forward_bias=True,
        experts=Experts(
            num_experts=c.num_local_experts,
            num_chosen=c.num_experts_per_tok,
            feed_forward_size=c.intermediate_size,
            is_renormalized=True,
            has_router_bias=True,
        ),
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names, and all experts of a layer in one tensor, gates and factors in turn."""
    return translated(TENSORS, "model.", name, tensor, config)
