"""What Llama's many descendants share: most fields of config.json, and what they mean.

Each family's own file says where it differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, activation
from model.families._rotary import rotation

LayerTypes = list[Literal["full_attention", "sliding_attention"]]


class LlamaLikeJson(ConfigJson, frozen=True, kw_only=True):
    """The fields that all of them have."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: NumLayers
    num_attention_heads: int
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False


def llama_like(
    c: LlamaLikeJson,
    *,
    head_dim: int | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    partial_rotary_factor: float = 1.0,
    original_max_positions: int | None = None,
    is_interleaved: bool = False,
    **parts: Any,
) -> DecoderConfig:
    """Llama's decoder: pre-norm, RMS norm, rotary positions, gated SiLU, no biases. `parts` change it."""
    if head_dim is None:
        head_dim = head_size(c.hidden_size, c.num_attention_heads)
    turned, max_positions = rotation(
        int(head_dim * partial_rotary_factor),
        c.rope_theta,
        rope_scaling,
        max_positions=c.max_position_embeddings,
        original_max_positions=original_max_positions,
        is_interleaved=is_interleaved,
    )
    described: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_layers": c.num_hidden_layers,
        "num_heads": c.num_attention_heads,
        "num_kv_heads": c.num_attention_heads if c.num_key_value_heads is None else c.num_key_value_heads,
        "head_dim": head_dim,
        "feed_forward_size": c.intermediate_size,
        "max_positions": max_positions,
        "positions": "rotary",
        "rotations": (turned,) * c.num_hidden_layers,
        "norm": "rms_norm",
        "norm_placement": "pre",
        "is_gated": True,
        "has_attention_bias": False,
        "has_attention_output_bias": False,
        "has_feed_forward_bias": False,
        "is_output_tied": c.tie_word_embeddings,
    }
    if "activation" not in parts:
        described["activation"] = activation("hidden_act", c.hidden_act)
    return DecoderConfig(**described | parts)


def head_size(hidden_size: int, num_heads: int) -> int:
    """The size of a head where the heads share `hidden_size`. Raises `ValueError` if it does not divide."""
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(f"hidden_size is {hidden_size}, must be a multiple of the heads, {num_heads}")
    return hidden_size // num_heads


def layer_windows(
    window: int | None, layer_types: Sequence[str] | None, default: Sequence[bool]
) -> tuple[int | None, ...]:
    """The window of each layer: by `layer_types`, or by `default`, which layers slide."""
    slides = list(default) if layer_types is None else [t == "sliding_attention" for t in layer_types]
    if len(slides) != len(default):
        raise ValueError(f"layer_types has {len(slides)} entries, must have {len(default)}")
    if window is None and any(slides):
        raise ValueError("layer_types has sliding_attention, but there is no sliding_window")
    return tuple(window if does_slide else None for does_slide in slides)


def most_layers(num_layers: int, pattern: int) -> list[bool]:
    """All layers but every `pattern`-th."""
    if pattern < 1:
        raise ValueError(f"sliding_window_pattern is {pattern}, must be at least 1")
    return [(layer + 1) % pattern != 0 for layer in range(num_layers)]


def reciprocal_root(field: str, value: float) -> float:
    """1 / sqrt(value). Raises `ValueError` naming the field."""
    if not 0.0 < value < 1e30:
        raise ValueError(f"{field} is {value}, must be above 0 and below 1e30")
    return float(value**-0.5)


def dense_layers(num_layers: int, step: int, dense: Sequence[int] | None) -> frozenset[int]:
    """The layers without experts: those named, and all but every `step`-th."""
    if step < 1:
        raise ValueError(f"decoder_sparse_step is {step}, must be at least 1")
    return frozenset(layer for layer in range(num_layers) if layer in (dense or ()) or (layer + 1) % step)
