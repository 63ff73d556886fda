"""What a decoder is made of: one frozen description to which every family of models is translated.

Knows nothing of files, tensors or devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PositionKind = Literal["sinusoidal", "learned", "rotary", "alibi"]
NormKind = Literal["layer_norm", "rms_norm"]
NormPlacement = Literal["post", "pre", "output", "sandwich"]
HeadNormKind = Literal["head", "each_head", "all_heads"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "quick_gelu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How rotary positions turn the first `2 * len(frequencies)` elements of a head; the others stay.

    What a family does to stretch its context (linear, llama3, yarn, …) is in the frequencies already.
    """

    frequencies: tuple[float, ...]  # of each pair of elements, in radians per position
    amplitude: float = 1.0  # what is turned also grows by it
    is_interleaved: bool = False  # pairs (2i, 2i + 1), as in the paper; else (i, i + half), as in GPT-NeoX


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: each token passes through the few feed-forward networks chosen for it."""

    num_experts: int
    num_chosen: int  # for each token
    feed_forward_size: int  # of each expert
    is_renormalized: bool  # the chosen experts' weights sum to 1
    shared_size: int | None = None  # of one more network that sees every token, behind a gate of its own
    has_router_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The parts of one decoder and their sizes.

    `norm_placement="post"` is the document's Add & Norm: the norm comes after the skip connection.
    `"pre"` norms the input of each sub-layer instead, `"output"` its output before it is added, and
    `"sandwich"` both; these three norm the output of the last layer once more.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # num_heads: multi-head; 1: multi-query; between: grouped-query attention
    head_dim: int
    feed_forward_size: int
    max_positions: int

    embedding_size: int | None = None  # of the embeddings, if projections join them to `hidden_size`
    embedding_scale: float = 1.0  # the token embeddings are multiplied by it
    has_embedding_norm: bool = False

    positions: PositionKind
    rotations: tuple[Rotation | None, ...] = ()  # of each layer; for rotary positions alone
    alibi_slopes: tuple[float, ...] = ()  # of each head; for ALiBi alone
    is_alibi_rounded: bool = False  # what it adds is rounded to bfloat16, and scaled as dot products are

    norm: NormKind
    norm_placement: NormPlacement
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # an RMS norm's weights are stored less this
    has_norm_bias: bool = True  # of layer norms; an RMS norm has none

    is_parallel: bool = False  # attention and feed-forward network side by side, not one after the other
    is_norm_shared: bool = False  # and both behind one norm
    residual_scale: float = 1.0  # each sub-layer's output is multiplied by it before it is added

    head_norm: HeadNormKind | None = None  # queries and keys are normed before they are turned
    attention_scale: float | None = None  # of the dot products; None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # scores s become cap * tanh(s / cap)
    has_attention_sinks: bool = False  # each head has one more score, learned, to which no value belongs
    windows: tuple[int | None, ...] = ()  # of each layer: how many keys a query sees, its own included
    has_attention_bias: bool  # of the projections to queries, keys and values
    has_attention_output_bias: bool

    activation: Activation
    is_gated: bool  # W2 (act(W1 x) * W3 x) in place of W2 act(W1 x)
    gate_limit: float | None = None  # both factors are clamped to it, and the second is W3 x + 1
    has_feed_forward_bias: bool
    experts: Experts | None = None
    dense_layers: frozenset[int] = frozenset()  # those without experts, if others have them

    is_output_tied: bool  # the output layer's weight is the embedding's
    has_output_bias: bool = False
    logits_scale: float = 1.0  # the logits are multiplied by it
    logits_softcap: float | None = None  # and then capped, as attention's scores are

    @property
    def score_scale(self) -> float:
        """What attention's dot products are multiplied by."""
        return 1.0 / math.sqrt(self.head_dim) if self.attention_scale is None else self.attention_scale

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The window of each layer, spelt out."""
        return self.windows or (None,) * self.num_layers

    def experts_of(self, layer: int) -> Experts | None:
        """The mixture of this layer, if it has one."""
        return None if layer in self.dense_layers else self.experts

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder can have; raises `ValueError` naming field, value and limit."""
        for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads",
            "head_dim", "feed_forward_size", "max_positions", "embedding_size",
        ):  # fmt: skip
            self._require(name, 1)
        for name in (
            "embedding_scale", "norm_eps", "residual_scale", "logits_scale",
            "attention_scale", "attention_softcap", "logits_softcap", "gate_limit",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1e30:  # the largest float32 is 3e38
                raise ValueError(f"{name} is {value}, must be above 0 and below 1e30")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, must be a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}, must be even for sinusoidal positions")
        for name, count in (
            ("rotations", self.num_layers if self.positions == "rotary" else 0),
            ("alibi_slopes", self.num_heads if self.positions == "alibi" else 0),
            ("windows", self.num_layers if self.windows else 0),
        ):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, must have {count}")
        self._require_parts()

    def _require(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, must be at least {least}")

    def _require_parts(self) -> None:
        """The same for what lies within the parts."""
        for rotation in filter(None, self.rotations):
            size = 2 * len(rotation.frequencies)
            if not 2 <= size <= self.head_dim:
                raise ValueError(f"rotary positions turn {size} elements, must be from 2 to {self.head_dim}")
            if not all(0.0 <= f < 1e30 for f in (*rotation.frequencies, rotation.amplitude)):
                raise ValueError("a rotation's frequencies and amplitude must be from 0 to below 1e30")
        for window in self.layer_windows:
            if window is not None and window < 1:
                raise ValueError(f"an attention window is {window}, must be at least 1")
        if self.experts is not None:
            sizes = (self.experts.num_experts, self.experts.feed_forward_size, self.experts.shared_size)
            if any(size is not None and size < 1 for size in sizes):
                raise ValueError(f"the experts' number and sizes are {sizes}, must be at least 1")
            if not 1 <= self.experts.num_chosen <= self.experts.num_experts:
                raise ValueError(
                    f"{self.experts.num_chosen} experts are chosen, must be from 1 to "
                    f"{self.experts.num_experts}"
                )
