"""GPT (2018): the document's decoder, norms after the skip connections, with learned positions and GELU."""

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
    afn: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {"n_special": 0, "predict_special_tokens": True}
HARMLESS = frozenset({"n_ctx"})

TENSORS: dict[str, Place] = {
    "tokens_embed": "embedding",
    "positions_embed": "positions",
    "h.*.attn": "",  # a constant: which keys are later
    "h.*.attn.c_attn": transposed(queries_keys_values),
    "h.*.attn.c_proj": transposed("layers.*.attention.wo"),
    "h.*.ln_1": "layers.*.attention_norm",
    "h.*.mlp.c_fc": transposed("layers.*.feed_forward.w1"),
    "h.*.mlp.c_proj": transposed("layers.*.feed_forward.w2"),
    "h.*.ln_2": "layers.*.feed_forward_norm",
    "lm_head": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """What `afn` calls gelu is its approximation with tanh."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        num_layers=c.n_layer,
        num_heads=c.n_head,
        num_kv_heads=c.n_head,
        head_dim=head_size(c.n_embd, c.n_head),
        feed_forward_size=4 * c.n_embd,
        max_positions=c.n_positions,
        positions="learned",
        norm="layer_norm",
        norm_placement="post",
        norm_eps=c.layer_norm_epsilon,
        activation="gelu_tanh" if c.afn == "gelu" else activation("afn", c.afn),
        is_gated=False,
        has_attention_bias=True,
        has_attention_output_bias=True,
        has_feed_forward_bias=True,
        is_output_tied=c.tie_word_embeddings,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Linear layers are stored transposed, the first three of a layer as one."""
    return translated(TENSORS, "transformer.", name, tensor, config)
