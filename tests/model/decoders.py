"""Small decoders with random weights, and the means to run them step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from model.attention import PagedAttention
from model.batch import ForwardBatch
from model.config import DecoderConfig
from model.decoder import Decoder
from model.interface import StepItem
from model.kv_cache import BLOCK_SIZE, KVCache

CPU = torch.device("cpu")

DOCUMENT = DecoderConfig(
    vocab_size=97,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    feed_forward_size=64,
    max_positions=256,
    positions="sinusoidal",
    embedding_scale=32**0.5,
    norm="layer_norm",
    norm_placement="post",
    activation="gelu",
    is_gated=False,
    has_attention_bias=True,
    has_feed_forward_bias=True,
    is_output_tied=True,
)
LLAMA_LIKE = dataclasses.replace(
    DOCUMENT,
    num_kv_heads=2,
    positions="rotary",
    embedding_scale=1.0,
    norm="rms_norm",
    norm_placement="pre",
    activation="silu",
    is_gated=True,
    has_attention_bias=False,
    has_feed_forward_bias=False,
    is_output_tied=False,
)
GPT2_LIKE = dataclasses.replace(
    DOCUMENT, positions="learned", embedding_scale=1.0, norm_placement="pre", activation="gelu_tanh"
)


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    """Any decoder that `DecoderConfig` can describe, small."""
    num_kv_heads = draw(st.integers(1, 3))
    return DecoderConfig(
        vocab_size=draw(st.integers(2, 70)),
        hidden_size=2 * draw(st.integers(1, 20)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=num_kv_heads,
        head_dim=2 * draw(st.integers(1, 9)),
        feed_forward_size=draw(st.integers(1, 50)),
        max_positions=200,
        positions=draw(st.sampled_from(["sinusoidal", "learned", "rotary"])),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])),
        embedding_scale=draw(st.sampled_from([1.0, 4.0])),
        norm=draw(st.sampled_from(["layer_norm", "rms_norm"])),
        norm_placement=draw(st.sampled_from(["post", "pre"])),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"])),
        is_gated=draw(st.booleans()),
        has_attention_bias=draw(st.booleans()),
        has_feed_forward_bias=draw(st.booleans()),
        is_output_tied=draw(st.booleans()),
    )


def random_decoder(config: DecoderConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
    """A decoder whose weights are neither tiny nor alike: norms around one, the rest normal."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config)
    for name, parameter in decoder.named_parameters():
        spread = 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[1] ** -0.5
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        with torch.no_grad():
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return decoder.to(dtype).eval().requires_grad_(False)


class Stepper:
    """Runs a decoder over a paged cache; hands every sequence its blocks, scattered over the cache."""

    def __init__(self, decoder: Decoder, num_sequences: int, max_pairs: int = 1000) -> None:
        config = decoder.config
        dtype = decoder.embedding.weight.dtype
        per_sequence = -(-config.max_positions // BLOCK_SIZE)
        order = torch.randperm(num_sequences * per_sequence, generator=torch.Generator().manual_seed(1))
        self.tables = [part.tolist() for part in order.split(per_sequence)]
        self.decoder = decoder
        self.cache = KVCache(config, num_sequences * per_sequence, dtype, CPU)
        self.max_pairs = max_pairs

    def step(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> list[Tensor]:
        """One step of parts (sequence, first position, ids): each part's logits, [len(ids), vocab_size]."""
        items = [
            StepItem(
                token_ids=ids,
                start=start,
                block_table=self.tables[sequence][: -(-(start + len(ids)) // BLOCK_SIZE)],
            )
            for sequence, start, ids in parts
        ]
        batch = ForwardBatch.build(items, self.max_pairs, CPU)
        config = self.decoder.config
        attend = PagedAttention(batch, self.cache, config.num_heads // config.num_kv_heads)
        with torch.inference_mode():
            logits = self.decoder(batch.token_ids, batch.positions, attend)
        return list(logits.split([len(ids) for _, _, ids in parts]))


def whole(decoder: Decoder, token_ids: Sequence[int]) -> Tensor:
    """The logits after every position, computed in one step and alone."""
    return Stepper(decoder, 1).step([(0, 0, token_ids)])[0]


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """Token ids."""
    ids: list[int] = torch.randint(
        vocab_size, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return ids


def cut(token_ids: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The ids in pieces of these lengths, the last one whatever is left: (first position, piece)."""
    pieces, start = [], 0
    for length in [*lengths, len(token_ids)]:
        if start < len(token_ids):
            pieces.append((start, list(token_ids[start : start + length])))
            start += length
    return pieces
