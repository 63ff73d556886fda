"""The embedded model's family: the document's decoder, with the choices that were first made on it.

Its config.json has a field for each part; its tensors have the decoder's own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from torch import Tensor

from model.config import Activation, DecoderConfig, NormKind, Rotation
from model.families._fields import ConfigJson, NumLayers
from model.families._rotary import frequencies


class FIELDS(ConfigJson, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """config.json, field by field. What has a default may be left out."""

    architectures: tuple[str, ...] = ("VerbatimDecoder",)
    model_type: str
    dtype: str  # of the stored weights; the tensors themselves say it too
    eos_token_id: int | list[int]
    vocab_size: int
    hidden_size: int
    num_layers: NumLayers
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    feed_forward_size: int
    max_positions: int
    positions: Literal["sinusoidal", "learned", "rotary"]
    rope_theta: float = 10_000.0
    embedding_scale: float = 1.0
    norm: NormKind
    norm_placement: Literal["post", "pre"]
    norm_eps: float = 1e-5
    activation: Activation
    gated: bool = False
    attention_bias: bool
    feed_forward_bias: bool
    tie_word_embeddings: bool


FIXED: dict[str, object] = {}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Translate; an unknown, missing or mistyped field is a `ValueError` that names it."""
    c = msgspec.convert(config, FIELDS)
    head_dim = c.hidden_size // max(c.num_heads, 1) if c.head_dim is None else c.head_dim
    rotations: tuple[Rotation, ...] = ()
    if c.positions == "rotary":
        rotations = (Rotation(frequencies=frequencies(head_dim, c.rope_theta)),) * c.num_layers
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        num_layers=c.num_layers,
        num_heads=c.num_heads,
        num_kv_heads=c.num_heads if c.num_kv_heads is None else c.num_kv_heads,
        head_dim=head_dim,
        feed_forward_size=c.feed_forward_size,
        max_positions=c.max_positions,
        positions=c.positions,
        rotations=rotations,
        embedding_scale=c.embedding_scale,
        norm=c.norm,
        norm_placement=c.norm_placement,
        norm_eps=c.norm_eps,
        activation=c.activation,
        is_gated=c.gated,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        has_feed_forward_bias=c.feed_forward_bias,
        is_output_tied=c.tie_word_embeddings,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The names are ours already."""
    yield name, tensor
