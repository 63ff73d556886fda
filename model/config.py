"""What a decoder is made of: one frozen description to which every family of models is translated.

Knows nothing of files, tensors or devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PositionKind = Literal["sinusoidal", "learned", "rotary"]
NormKind = Literal["layer_norm", "rms_norm"]
NormPlacement = Literal["post", "pre"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The parts of one decoder and their sizes.

    `norm_placement="post"` is the document's Add & Norm: the norm comes after the skip connection.
    `"pre"` norms the input of each sub-layer instead, and the output of the last layer once more.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # num_heads: multi-head; 1: multi-query; between: grouped-query attention
    head_dim: int
    feed_forward_size: int
    max_positions: int

    positions: PositionKind
    rope_theta: float = 10_000.0  # the base of the rotary angles; of no effect with other positions
    embedding_scale: float = 1.0  # the token embeddings are multiplied by it

    norm: NormKind
    norm_placement: NormPlacement
    norm_eps: float = 1e-5

    activation: Activation
    is_gated: bool  # W2 (act(W1 x) * W3 x) in place of W2 act(W1 x)

    has_attention_bias: bool
    has_feed_forward_bias: bool
    is_output_tied: bool  # the output layer's weight is the embedding's

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder can have; raises `ValueError` naming field, value and limit."""
        for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads",
            "head_dim", "feed_forward_size", "max_positions",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name in ("rope_theta", "embedding_scale", "norm_eps"):
            if not 0.0 < getattr(self, name) < 1e30:  # the largest float32 is 3e38
                raise ValueError(f"{name} is {getattr(self, name)}, must be above 0 and below 1e30")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, must be a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, must be even for rotary positions")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}, must be even for sinusoidal positions")
