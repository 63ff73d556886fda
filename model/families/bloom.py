"""BLOOM: GPT-2 with ALiBi in place of positions, and a norm behind the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, one_of, read
from model.families._llama_like import head_size
from model.families._rotary import alibi_slopes
from model.families._tensors import Place, queries_keys_values_by_group, translated


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json. `n_embed`, `num_hidden_layers` and `num_attention_heads` are older names."""

    vocab_size: int
    hidden_size: int | None = None
    n_embed: int | None = None
    n_layer: NumLayers | None = None
    num_hidden_layers: NumLayers | None = None
    n_head: int | None = None
    num_attention_heads: int | None = None
    seq_length: int = 2048
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {
    "apply_residual_connection_post_layernorm": False,
    "n_inner": None,
    "slow_but_exact": False,  # with `pretraining_tp` above 1, `transformers` then leaves out biases
}
# How the first writers computed: `transformers` does not read them.
HARMLESS = frozenset(
    {"attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi"}
    | {"skip_bias_add", "skip_bias_add_qkv"}
)

TENSORS: dict[str, Place] = {
    "word_embeddings": "embedding",
    "word_embeddings_layernorm": "embedding.norm",
    "h.*.input_layernorm": "layers.*.attention_norm",
    "h.*.self_attention.query_key_value": queries_keys_values_by_group,
    "h.*.self_attention.dense": "layers.*.attention.wo",
    "h.*.post_attention_layernorm": "layers.*.feed_forward_norm",
    "h.*.mlp.dense_h_to_4h": "layers.*.feed_forward.w1",
    "h.*.mlp.dense_4h_to_h": "layers.*.feed_forward.w2",
    "ln_f": "final_norm",
    "lm_head": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Nothing limits the positions but `seq_length`, what it was trained on."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    hidden_size = one_of(hidden_size=c.hidden_size, n_embed=c.n_embed)
    num_layers = one_of(n_layer=c.n_layer, num_hidden_layers=c.num_hidden_layers)
    num_heads = one_of(n_head=c.n_head, num_attention_heads=c.num_attention_heads)
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_size(hidden_size, num_heads),
        feed_forward_size=4 * hidden_size,
        max_positions=c.seq_length,
        has_embedding_norm=True,
        positions="alibi",
        alibi_slopes=alibi_slopes(num_heads),
        norm="layer_norm",
        norm_placement="pre",
        norm_eps=c.layer_norm_epsilon,
        activation="gelu_tanh",
        is_gated=False,
        has_attention_bias=True,
        has_attention_output_bias=True,
        has_feed_forward_bias=True,
        is_output_tied=c.tie_word_embeddings,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values are stored as one, head by head."""
    return translated(TENSORS, "transformer.", name, tensor, config)
