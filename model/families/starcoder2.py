"""StarCoder 2: layer norms, biases everywhere, no gate, a sliding window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import read
from model.families._llama_like import LlamaLikeJson, llama_like
from model.families._tensors import LLAMA, Place, translated


class FIELDS(LlamaLikeJson, frozen=True, kw_only=True):
    """config.json."""

    num_key_value_heads: int | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    norm_epsilon: float = 1e-5
    rope_scaling: dict[str, Any] | None = None
    sliding_window: int | None = None
    use_bias: bool = True
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {"mlp_type": "default", "norm_type": "layer_norm"}
HARMLESS = frozenset({"rms_norm_eps"})  # the norm is another

TENSORS: dict[str, Place] = {
    **LLAMA,
    "layers.*.mlp.c_fc": "layers.*.feed_forward.w1",
    "layers.*.mlp.c_proj": "layers.*.feed_forward.w2",
}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Every layer has the window."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    return llama_like(
        c,
        rope_scaling=c.rope_scaling,
        norm="layer_norm",
        norm_eps=c.norm_epsilon,
        is_gated=False,
        windows=(c.sliding_window,) * c.num_hidden_layers,
        has_attention_bias=c.use_bias,
        has_attention_output_bias=c.use_bias,
        has_feed_forward_bias=c.use_bias,
    )


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's names but for the feed-forward network's."""
    return translated(TENSORS, "model.", name, tensor, config)
