"""Steps of a fixed shape, as CUDA graphs need them: the same bits, and nothing that asks for a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import DecoderConfig
from model.cuda_graphs import MOST_PADDING, DecodeGraphs, DecodeShape, DecodeStep, decode_shapes, shape_of
from model.decoder import Decoder
from model.interface import StepItem
from model.kv_cache import BLOCK_SIZE, KEY_TILE, KVCache
from model.loader import load, open_folder
from model.plan import graph_bytes
from tests.model.decoders import (
    CPU,
    DOCUMENT,
    EVERYTHING_ELSE,
    GPT2_LIKE,
    LLAMA_LIKE,
    Stepper,
    configs,
    random_decoder,
    random_ids,
)
from tests.model.folders import write_folder
from tests.model.kernels.paths import same_bits
from tests.model.live_bytes import LiveBytes

ALIBI = dataclasses.replace(DOCUMENT, positions="alibi", alibi_slopes=(0.5, 0.25, 0.1, 0.01))
WITHOUT_EXPERTS = dataclasses.replace(EVERYTHING_ELSE, experts=None, dense_layers=frozenset())


def decode_items(stepper: Stepper, lengths: Sequence[int], token_ids: Sequence[int]) -> list[StepItem]:
    """The next token of each sequence."""
    return [
        StepItem(token_ids=[token_id], start=length, block_table=table[: length // BLOCK_SIZE + 1])
        for length, token_id, table in zip(lengths, token_ids, stepper.tables, strict=True)
    ]


def prefilled(decoder: Decoder, lengths: Sequence[int]) -> Stepper:
    stepper = Stepper(decoder, len(lengths))
    for sequence, length in enumerate(lengths):
        stepper.step([(sequence, 0, random_ids(length, decoder.config.vocab_size, seed=sequence))])
    return stepper


@given(
    configs(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.lists(st.integers(1, 199), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 2),
)
@settings(max_examples=40)
def test_a_step_of_a_fixed_shape_has_the_bits_of_any_other(
    config: DecoderConfig, dtype: torch.dtype, lengths: list[int], more_rows: int, more_tiles: int
) -> None:
    """Filled up with rows and with key tiles; loaded into tensors that held another step before."""
    decoder = random_decoder(dataclasses.replace(config, experts=None), dtype)
    shape = DecodeShape(len(lengths) + more_rows, 199 // KEY_TILE + 1 + more_tiles)
    token_ids = random_ids(len(lengths), config.vocab_size, seed=9)

    expected = prefilled(decoder, lengths)
    parts = [(i, length, [token_ids[i]]) for i, length in enumerate(lengths)]
    logits = torch.cat(expected.step(parts))
    actual = prefilled(decoder, lengths)
    items = decode_items(actual, lengths, token_ids)
    with torch.inference_mode():
        step = DecodeStep(decoder, actual.cache, shape)
        step.load(items[:1])
        step.compute()
        step.load(items)
        hidden = step.compute()
        assert hidden.shape == (shape.num_rows, config.hidden_size)
        assert same_bits(decoder.logits(hidden[: len(lengths)]), logits)
    assert same_bits(actual.cache.keys, expected.cache.keys)
    assert same_bits(actual.cache.values, expected.cache.values)


def compute_without_memory(config: DecoderConfig) -> Tensor:
    """A step on the meta device, where tensors have shapes alone: whatever asks for a number fails."""
    decoder = random_decoder(config).to("meta")
    step = DecodeStep(decoder, KVCache(config, 40, torch.float32, torch.device("meta")), DecodeShape(3, 2))
    step.load([StepItem(token_ids=[0], start=100, block_table=range(7))])
    return step.compute()


@pytest.mark.parametrize("config", [DOCUMENT, GPT2_LIKE, LLAMA_LIKE, ALIBI, WITHOUT_EXPERTS])
def test_no_operation_of_a_step_depends_on_what_its_tensors_hold(config: DecoderConfig) -> None:
    """Such a step can be captured."""
    assert compute_without_memory(config).shape == (3, config.hidden_size)
    assert decode_shapes(config, 4, 100)


def test_experts_do_and_have_no_graphs() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        compute_without_memory(EVERYTHING_ELSE)
    assert decode_shapes(EVERYTHING_ELSE, 4, 100) == []


def test_shapes_are_powers_of_two_within_the_limits_the_largest_first() -> None:
    shapes = decode_shapes(dataclasses.replace(DOCUMENT, max_positions=5 * KEY_TILE), 6, 12)
    assert sorted(shapes) == [(1, 1), (1, 2), (1, 4), (1, 5), (2, 1), (2, 2), (2, 4), (2, 5), (4, 1), (4, 2),
                              (6, 1), (6, 2)]  # fmt: skip
    sizes = [shape.num_pairs for shape in shapes]
    assert sizes == sorted(sizes, reverse=True)


SHAPES = decode_shapes(dataclasses.replace(DOCUMENT, max_positions=64 * KEY_TILE), 32, 2048)


@given(st.lists(st.integers(0, 64 * KEY_TILE - 1), min_size=1, max_size=32))
def test_a_step_goes_into_a_shape_that_is_not_far_larger(starts: list[int]) -> None:
    items = [StepItem(token_ids=[0], start=start, block_table=[]) for start in starts]
    num_tiles = [start // KEY_TILE + 1 for start in starts]
    shape = shape_of(items, SHAPES)
    if shape is None:
        assert 4 * len(starts) * max(num_tiles) > MOST_PADDING * sum(num_tiles)
    else:
        assert len(starts) <= shape.num_rows < 2 * len(starts)
        assert max(num_tiles) <= shape.num_key_tiles < 2 * max(num_tiles)
        assert shape.num_pairs <= MOST_PADDING * sum(num_tiles)


def test_a_long_sequence_among_short_ones_and_a_prompt_are_done_as_they_are() -> None:
    short = StepItem(token_ids=[0], start=0, block_table=[0])
    long = StepItem(token_ids=[0], start=64 * KEY_TILE - 1, block_table=[0])
    assert shape_of([short] * 32, SHAPES) == (32, 1)
    assert shape_of([short] * 31 + [long], SHAPES) is None
    assert shape_of([short, StepItem(token_ids=[0, 0], start=0, block_table=[0])], SHAPES) is None
    assert shape_of([short] * 33, SHAPES) is None


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_the_plan_holds_what_a_step_of_a_graph_takes(tmp_path: Path, quantize: str) -> None:
    """For layers so wide that decoding them is most of it."""
    write_folder(tmp_path, hidden_size=512, feed_forward_size=1024, num_heads=8, max_positions=64)
    decoder = load(open_folder(tmp_path, "float32", quantize)).decoder
    cache = KVCache(decoder.config, 8, torch.float32, CPU)
    with torch.inference_mode(), LiveBytes() as live:
        step = DecodeStep(decoder, cache, DecodeShape(2, 1))
        step.compute()
    assert live.peak <= graph_bytes(decoder, torch.float32, 2)


def test_there_are_none_on_a_cpu() -> None:
    decoder = random_decoder(DOCUMENT)
    cache = KVCache(DOCUMENT, 4, torch.float32, CPU)
    assert DecodeGraphs.capture(decoder, cache, 2, 8, lambda: None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", [DOCUMENT, LLAMA_LIKE, ALIBI, WITHOUT_EXPERTS])
def test_a_graph_has_the_bits_of_its_kernels_one_by_one(config: DecoderConfig) -> None:
    decoder = random_decoder(config, torch.bfloat16).to("cuda")
    caches = [KVCache(config, 40, torch.bfloat16, torch.device("cuda")) for _ in range(2)]
    graphs = DecodeGraphs.capture(decoder, caches[0], 4, 64, lambda: None)
    assert graphs is not None
    for position in range(130):
        items = [StepItem(token_ids=[position % 90], start=position, block_table=range(position // 16 + 1))]
        step = DecodeStep(decoder, caches[1], DecodeShape(1, position // KEY_TILE + 1))
        with torch.inference_mode():
            step.load(items)
            expected = step.compute()
        hidden = graphs(items)
        assert hidden is not None
        assert torch.equal(hidden, expected)
