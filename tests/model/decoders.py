"""Small decoders with random weights, and the means to run them step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from model.batch import ForwardBatch
from model.config import DecoderConfig, Experts, PositionKind, Rotation
from model.decoder import Decoder
from model.families._rotary import frequencies
from model.interface import StepItem
from model.kernels.attention import make_attend
from model.kernels.library import NO_PATH, open_library
from model.kernels.recording import MAX_ROWS, RecordedLayers
from model.kv_cache import BLOCK_SIZE, KVCache

T = TypeVar("T")
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
    has_attention_output_bias=True,
    has_feed_forward_bias=True,
    is_output_tied=True,
)
LLAMA_LIKE = dataclasses.replace(
    DOCUMENT,
    num_kv_heads=2,
    positions="rotary",
    rotations=(Rotation(frequencies=frequencies(8, 10_000.0)),) * 3,
    embedding_scale=1.0,
    norm="rms_norm",
    norm_placement="pre",
    activation="silu",
    is_gated=True,
    has_attention_bias=False,
    has_attention_output_bias=False,
    has_feed_forward_bias=False,
    is_output_tied=False,
)
GPT2_LIKE = dataclasses.replace(
    DOCUMENT, positions="learned", embedding_scale=1.0, norm_placement="pre", activation="gelu_tanh"
)

EVERYTHING_ELSE = dataclasses.replace(
    LLAMA_LIKE,
    rotations=(
        Rotation(frequencies=frequencies(4, 100.0), is_interleaved=True),
        Rotation(frequencies=frequencies(8, 10_000.0), amplitude=1.2),
        None,
    ),
    norm_placement="sandwich",
    norm_offset=1.0,
    residual_scale=0.7,
    head_norm="each_head",
    attention_softcap=5.0,
    has_attention_sinks=True,
    windows=(None, 7, 70),
    gate_limit=3.0,
    experts=Experts(num_experts=6, num_chosen=2, feed_forward_size=24, is_renormalized=False, shared_size=20),
    dense_layers=frozenset({1}),
    logits_softcap=3.0,
)


@st.composite
def configs(draw: st.DrawFn, *, only_the_document_s_attention: bool = False) -> DecoderConfig:
    """Any decoder that `DecoderConfig` can describe, small."""
    num_layers = draw(st.integers(1, 3))
    num_kv_heads = draw(st.integers(1, 3))
    num_heads = num_kv_heads * draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 9))
    kinds: list[PositionKind] = ["sinusoidal", "learned", "rotary"]
    positions = draw(st.sampled_from(kinds if only_the_document_s_attention else [*kinds, "alibi"]))
    is_parallel = draw(st.booleans())
    placements = ["pre"] if is_parallel else ["post", "pre", "output", "sandwich"]

    def of_each(count: int, kind: st.SearchStrategy[T]) -> tuple[T, ...]:
        return tuple(draw(st.lists(kind, min_size=count, max_size=count)))

    attention: dict[str, Any] = {}
    if not only_the_document_s_attention:
        attention = {
            "attention_scale": draw(st.sampled_from([None, 0.3])),
            "attention_softcap": draw(st.sampled_from([None, 2.0])),
            "has_attention_sinks": draw(st.booleans()),
            "windows": of_each(num_layers, st.sampled_from([None, 1, 5, 64, 70])),
        }
    return DecoderConfig(
        vocab_size=draw(st.integers(2, 70)),
        hidden_size=2 * draw(st.integers(1, 20)),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        feed_forward_size=draw(st.integers(1, 50)),
        max_positions=200,
        embedding_size=draw(st.sampled_from([None, 7])),
        embedding_scale=draw(st.sampled_from([1.0, 4.0])),
        has_embedding_norm=draw(st.booleans()),
        positions=positions,
        rotations=of_each(num_layers, rotations(head_dim)) if positions == "rotary" else (),
        alibi_slopes=of_each(num_heads, st.floats(0.01, 1.0)) if positions == "alibi" else (),
        is_alibi_rounded=draw(st.booleans()),
        norm=draw(st.sampled_from(["layer_norm", "rms_norm"])),
        norm_placement=draw(st.sampled_from(placements)),
        norm_offset=draw(st.sampled_from([0.0, 1.0])),
        has_norm_bias=draw(st.booleans()),
        is_parallel=is_parallel,
        is_norm_shared=is_parallel and draw(st.booleans()),
        residual_scale=draw(st.sampled_from([1.0, 0.7])),
        head_norm=draw(st.sampled_from([None, "head", "each_head", "all_heads"])),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh", "silu", "quick_gelu"])),
        is_gated=draw(st.booleans()),
        gate_limit=draw(st.sampled_from([None, 1.0])),
        has_attention_bias=draw(st.booleans()),
        has_attention_output_bias=draw(st.booleans()),
        has_feed_forward_bias=draw(st.booleans()),
        experts=draw(st.none() | experts()),
        dense_layers=draw(st.frozensets(st.integers(0, 2))),
        is_output_tied=draw(st.booleans()),
        has_output_bias=draw(st.booleans()),
        logits_scale=draw(st.sampled_from([1.0, 0.1])),
        logits_softcap=draw(st.sampled_from([None, 3.0])),
        **attention,
    )


@st.composite
def rotations(draw: st.DrawFn, head_dim: int) -> Rotation | None:
    """None, or all of a head turned, or a part of it."""
    if draw(st.sampled_from([False, False, False, True])):
        return None
    size = 2 * draw(st.integers(1, head_dim // 2))
    return Rotation(
        frequencies=frequencies(size, draw(st.sampled_from([100.0, 10_000.0, 500_000.0]))),
        amplitude=draw(st.sampled_from([1.0, 1.2])),
        is_interleaved=draw(st.booleans()),
    )


@st.composite
def experts(draw: st.DrawFn) -> Experts:
    """A few experts, or one."""
    num_experts = draw(st.integers(1, 7))
    return Experts(
        num_experts=num_experts,
        num_chosen=draw(st.integers(1, num_experts)),
        feed_forward_size=draw(st.integers(1, 20)),
        is_renormalized=draw(st.booleans()),
        shared_size=draw(st.sampled_from([None, 6])),
        has_router_bias=draw(st.booleans()),
    )


def random_decoder(
    config: DecoderConfig, dtype: torch.dtype = torch.float32, seed: int = 0, path: str = NO_PATH
) -> Decoder:
    """A decoder whose weights are neither tiny nor alike: norms around one, the rest normal.

    path: of the native kernels that it computes with.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config)
    for name, parameter in decoder.named_parameters():
        spread = 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[1] ** -0.5
        is_norm = name.endswith("weight") and "norm" in name
        centre = 1.0 - config.norm_offset * (config.norm == "rms_norm") if is_norm else 0.0
        with torch.no_grad():
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    for parameter in decoder.parameters():  # the tables of positions stay in float32, as when one is loaded
        parameter.data = parameter.data.to(dtype)
    decoder.use(open_library(path))
    return decoder.eval().requires_grad_(False)


class Stepper:
    """Runs a decoder over a paged cache; hands every sequence its blocks, scattered over the cache.

    Small steps as the runner does them: by calls that were recorded, where there are kernels and it can be.
    """

    def __init__(
        self, decoder: Decoder, num_sequences: int, max_pairs: int = 1000, *, is_recorded: bool = True
    ) -> None:
        config = decoder.config
        embedding = decoder.embedding
        dtype = embedding.weight.dtype if embedding.table is None else embedding.table_dtype
        per_sequence = -(-config.max_positions // BLOCK_SIZE)
        order = torch.randperm(num_sequences * per_sequence, generator=torch.Generator().manual_seed(1))
        self.tables = [part.tolist() for part in order.split(per_sequence)]
        self.decoder = decoder
        self.cache = KVCache(config, num_sequences * per_sequence, dtype, CPU)
        self.max_pairs = max_pairs
        self.recorded = RecordedLayers.record(decoder, self.cache) if is_recorded else None

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
        config = self.decoder.config
        batch = ForwardBatch.build(items, CPU)
        attend = make_attend(batch, self.cache, config, self.decoder.kernels, self.max_pairs)
        with torch.inference_mode():
            if self.recorded is not None and len(batch.token_ids) <= MAX_ROWS:
                x = self.decoder.embed(batch.token_ids, batch.positions)
                logits = self.decoder.logits(self.recorded(x, batch.positions, attend))
            else:
                logits = self.decoder(batch.token_ids, batch.positions, attend)
        return list(logits.split([len(ids) for _, _, ids in parts]))


def whole(decoder: Decoder, token_ids: Sequence[int]) -> Tensor:
    """The logits after every position, computed in one step and alone, layer by layer."""
    return Stepper(decoder, 1, is_recorded=False).step([(0, 0, token_ids)])[0]


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
