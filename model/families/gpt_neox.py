"""GPT-NeoX and Pythia: both sub-layers in parallel, each behind its norm; a part of each head is turned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, activation, read
from model.families._llama_like import head_size
from model.families._rotary import rotation
from model.families._tensors import Place, queries_keys_values_by_group, translated


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: NumLayers
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    rotary_pct: float = 0.25
    partial_rotary_factor: float | None = None
    rotary_emb_base: float = 10_000.0
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False


FIXED: dict[str, object] = {}

TENSORS: dict[str, Place] = {
    "embed_in": "embedding",
    "layers.*.input_layernorm": "layers.*.attention_norm",
    "layers.*.attention": "",  # a constant: which keys are later
    "layers.*.attention.query_key_value": queries_keys_values_by_group,
    "layers.*.attention.dense": "layers.*.attention.wo",
    "layers.*.post_attention_layernorm": "layers.*.feed_forward_norm",
    "layers.*.mlp.dense_h_to_4h": "layers.*.feed_forward.w1",
    "layers.*.mlp.dense_4h_to_h": "layers.*.feed_forward.w2",
    "final_layer_norm": "final_norm",
    "embed_out": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """`rope_theta` and `partial_rotary_factor` are written beside their older names, and must agree."""
    c = read(config, FIELDS, FIXED)
    for newer, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if getattr(c, newer) not in (None, getattr(c, older)):
            raise ValueError(f"{newer} is {getattr(c, newer)}, but {older} is {getattr(c, older)}")
    head_dim = head_size(c.hidden_size, c.num_attention_heads)
    turned, max_positions = rotation(
        int(head_dim * c.rotary_pct),
        c.rotary_emb_base,
        c.rope_scaling,
        max_positions=c.max_position_embeddings,
    )
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        num_layers=c.num_hidden_layers,
        num_heads=c.num_attention_heads,
        num_kv_heads=c.num_attention_heads,
        head_dim=head_dim,
        feed_forward_size=c.intermediate_size,
        max_positions=max_positions,
        positions="rotary",
        rotations=(turned,) * c.num_hidden_layers,
        norm="layer_norm",
        norm_placement="pre",
        norm_eps=c.layer_norm_eps,
        is_parallel=c.use_parallel_residual,
        activation=activation("hidden_act", c.hidden_act),
        is_gated=False,
        has_attention_bias=c.attention_bias,
        has_attention_output_bias=c.attention_bias,
        has_feed_forward_bias=True,
        is_output_tied=c.tie_word_embeddings,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values are stored as one, head by head."""
    return translated(TENSORS, "gpt_neox.", name, tensor, config)
