"""Which decoders' layers can be recorded. That they then compute the same bits, test_exactness.py shows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.config import DecoderConfig
from model.kernels.library import Kernels
from model.kernels.recording import MAX_ROWS, RecordedLayers, recorded_bytes
from model.kv_cache import KVCache
from tests.model.decoders import (
    CPU,
    DOCUMENT,
    EVERYTHING_ELSE,
    GPT2_LIKE,
    LLAMA_LIKE,
    Stepper,
    random_decoder,
    random_ids,
    whole,
)
from tests.model.kernels.paths import EACH, same_bits

SANDWICH = dataclasses.replace(
    LLAMA_LIKE, norm_placement="sandwich", residual_scale=0.7, head_norm="head", windows=(None, 7, 70)
)
PARALLEL = dataclasses.replace(GPT2_LIKE, is_parallel=True, is_norm_shared=True)


@EACH
@pytest.mark.parametrize(
    "config",
    [DOCUMENT, GPT2_LIKE, LLAMA_LIKE, SANDWICH, PARALLEL],
    ids=["post", "pre", "llama", "sandwich", "parallel"],
)
def test_layers_of_kernels_alone_are_recorded(kernels: Kernels, config: DecoderConfig) -> None:
    """As many rows as fit, then fewer, then other ones: what is left in memory from one step is not seen."""
    decoder = random_decoder(config, torch.bfloat16, path=kernels.path)
    stepper = Stepper(decoder, 2)
    assert stepper.recorded is not None
    ids = random_ids(MAX_ROWS + 3, config.vocab_size, seed=1)
    rows = stepper.step([(0, 0, ids[:MAX_ROWS])])
    rows += stepper.step([(0, MAX_ROWS, ids[MAX_ROWS:]), (1, 0, ids[7:20])])
    assert same_bits(torch.cat(rows[:2]), whole(decoder, ids))
    assert same_bits(rows[2], whole(decoder, ids[7:20]))


@EACH
def test_its_memory_is_no_more_than_planned(kernels: Kernels) -> None:
    for config in (DOCUMENT, LLAMA_LIKE, SANDWICH, PARALLEL):
        decoder = random_decoder(config, torch.bfloat16, path=kernels.path)
        recorded = RecordedLayers.record(decoder, KVCache(config, 1, torch.bfloat16, CPU))
        assert recorded is not None
        assert recorded.num_bytes <= recorded_bytes(config, torch.bfloat16)


@EACH
@pytest.mark.parametrize(
    "other",
    [
        EVERYTHING_ELSE,
        dataclasses.replace(LLAMA_LIKE, gate_limit=1.0),
        dataclasses.replace(LLAMA_LIKE, head_norm="each_head"),
    ],
    ids=["mixture", "limited gate", "norm of each head"],
)
def test_layers_that_also_compute_in_torch_are_not(kernels: Kernels, other: DecoderConfig) -> None:
    decoder = random_decoder(other, path=kernels.path)
    assert RecordedLayers.record(decoder, KVCache(other, 1, torch.float32, CPU)) is None
    assert kernels.recorder is None


def test_nor_is_a_decoder_without_kernels() -> None:
    decoder = random_decoder(DOCUMENT)
    assert RecordedLayers.record(decoder, KVCache(DOCUMENT, 1, torch.float32, CPU)) is None
