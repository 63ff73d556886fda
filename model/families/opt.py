"""OPT: GPT-2 with ReLU; its 350M has the norms after the skip connections, and narrow embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson, NumLayers, activation, read
from model.families._llama_like import head_size
from model.families._tensors import Parts, Place, translated


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: NumLayers
    ffn_dim: int
    max_position_embeddings: int = 2048
    num_attention_heads: int
    do_layer_norm_before: bool = True
    word_embed_proj_dim: int | None = None
    activation_function: str = "relu"
    enable_bias: bool = True
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {"_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}


def _without_offset(tensor: Tensor, config: DecoderConfig) -> Parts:
    return [("positions", tensor[2:])]  # the first two rows were for padding


TENSORS: dict[str, Place] = {
    "embed_tokens": "embedding",
    "project_in": "embedding.projection",
    "embed_positions": _without_offset,
    "layers.*.self_attn_layer_norm": "layers.*.attention_norm",
    "layers.*.self_attn.q_proj": "layers.*.attention.wq",
    "layers.*.self_attn.k_proj": "layers.*.attention.wk",
    "layers.*.self_attn.v_proj": "layers.*.attention.wv",
    "layers.*.self_attn.out_proj": "layers.*.attention.wo",
    "layers.*.final_layer_norm": "layers.*.feed_forward_norm",
    "layers.*.fc1": "layers.*.feed_forward.w1",
    "layers.*.fc2": "layers.*.feed_forward.w2",
    "final_layer_norm": "final_norm",
    "project_out": "output_projection",
    "lm_head": "output",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Embeddings of another size than the stream's are projected to it, and back before the output."""
    c = read(config, FIELDS, FIXED)
    is_narrow = c.word_embed_proj_dim not in (None, c.hidden_size)
    return DecoderConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        num_layers=c.num_hidden_layers,
        num_heads=c.num_attention_heads,
        num_kv_heads=c.num_attention_heads,
        head_dim=head_size(c.hidden_size, c.num_attention_heads),
        feed_forward_size=c.ffn_dim,
        max_positions=c.max_position_embeddings,
        embedding_size=c.word_embed_proj_dim if is_narrow else None,
        positions="learned",
        norm="layer_norm",
        norm_placement="pre" if c.do_layer_norm_before else "post",
        activation=activation("activation_function", c.activation_function),
        is_gated=False,
        has_attention_bias=c.enable_bias,
        has_attention_output_bias=c.enable_bias,
        has_feed_forward_bias=c.enable_bias,
        is_output_tied=c.tie_word_embeddings,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The table of positions begins at its third row."""
    return translated(TENSORS, "decoder.", name.removeprefix("model."), tensor, config)
