"""GPT-2: the document's decoder with the norms before the sub-layers, and learned positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, activation, read
from model.families._llama_like import head_size
from model.families._tensors import Place, queries_keys_values, translated, transposed


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: NumLayers
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {"scale_attn_by_inverse_layer_idx": False}
HARMLESS = frozenset({"n_ctx", "reorder_and_upcast_attn"})  # nobody reads the one; our scores are float32

TENSORS: dict[str, Place] = {
    "wte": "embedding",
    "wpe": "positions",
    "h.*.ln_1": "layers.*.attention_norm",
    "h.*.attn": "",  # a constant: which keys are later
    "h.*.attn.c_attn": transposed(queries_keys_values),
    "h.*.attn.c_proj": transposed("layers.*.attention.wo"),
    "h.*.ln_2": "layers.*.feed_forward_norm",
    "h.*.mlp.c_fc": transposed("layers.*.feed_forward.w1"),
    "h.*.mlp.c_proj": transposed("layers.*.feed_forward.w2"),
    "ln_f": "final_norm",
    "lm_head": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Without `scale_attn_weights` the dot products are not scaled at all."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        num_layers=c.n_layer,
        num_heads=c.n_head,
        num_kv_heads=c.n_head,
        head_dim=head_size(c.n_embd, c.n_head),
        feed_forward_size=4 * c.n_embd if c.n_inner is None else c.n_inner,
        max_positions=c.n_positions,
        positions="learned",
        norm="layer_norm",
        norm_placement="pre",
        norm_eps=c.layer_norm_epsilon,
        attention_scale=None if c.scale_attn_weights else 1.0,
        activation=activation("activation_function", c.activation_function),
        is_gated=False,
        has_attention_bias=True,
        has_attention_output_bias=True,
        has_feed_forward_bias=True,
        is_output_tied=c.tie_word_embeddings,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Linear layers are stored transposed, the first three of a layer as one."""
    return translated(TENSORS, "transformer.", name, tensor, config)
