"""The decoder against the document's formulas in float64, part by part and whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import WholeSequences
from model.config import DecoderConfig
from model.decoder import Decoder
from tests.model import reference
from tests.model.decoders import DOCUMENT, GPT2_LIKE, LLAMA_LIKE, configs, random_decoder, random_ids, whole
from tests.model.kernels.paths import ON_AND_OFF


def reference_logits(decoder: Decoder, token_ids: list[int]) -> reference.Array:
    weights = {name: tensor.double().numpy() for name, tensor in decoder.named_parameters()}
    return reference.logits(decoder.config, weights, token_ids)


def relative_error(actual: torch.Tensor, expected: reference.Array) -> float:
    return float(np.linalg.norm(actual.double().numpy() - expected) / np.linalg.norm(expected))


NAMED = {
    "document": DOCUMENT,
    "document, learned positions": dataclasses.replace(DOCUMENT, positions="learned"),
    "document, rotary positions": dataclasses.replace(
        DOCUMENT, positions="rotary", rotations=LLAMA_LIKE.rotations
    ),
    "document, relu": dataclasses.replace(DOCUMENT, activation="relu"),
    "document, multi-query": dataclasses.replace(DOCUMENT, num_kv_heads=1),
    "document, grouped-query": dataclasses.replace(DOCUMENT, num_kv_heads=2),
    "document, pre-norm": dataclasses.replace(DOCUMENT, norm_placement="pre"),
    "document, separate output": dataclasses.replace(DOCUMENT, is_output_tied=False),
    "gpt-2 like": GPT2_LIKE,
    "llama like": LLAMA_LIKE,
    "llama like, post-norm": dataclasses.replace(LLAMA_LIKE, norm_placement="post"),
}


@ON_AND_OFF
@pytest.mark.parametrize("config", NAMED.values(), ids=NAMED.keys())
def test_logits_equal_the_formulas(path: str, config: DecoderConfig) -> None:
    decoder = random_decoder(config, path=path)
    token_ids = random_ids(150, config.vocab_size, seed=3)
    assert relative_error(whole(decoder, token_ids), reference_logits(decoder, token_ids)) <= 1e-5


@ON_AND_OFF
@given(configs(), st.integers(1, 80), st.integers(0, 2**31))
@settings(max_examples=40)
def test_logits_equal_the_formulas_for_any_shape(
    path: str, config: DecoderConfig, length: int, seed: int
) -> None:
    decoder = random_decoder(config, seed=seed, path=path)
    token_ids = random_ids(length, config.vocab_size, seed)
    assert relative_error(whole(decoder, token_ids), reference_logits(decoder, token_ids)) <= 1e-5


@ON_AND_OFF
@pytest.mark.parametrize("config", [DOCUMENT, LLAMA_LIKE], ids=["document", "llama like"])
def test_bfloat16_is_as_close_as_its_digits_allow(path: str, config: DecoderConfig) -> None:
    """bfloat16 keeps 8 bits: each of some 20 roundings in a row costs up to 2^-9 of the value."""
    decoder = random_decoder(config, torch.bfloat16, path=path)
    token_ids = random_ids(60, config.vocab_size, seed=3)
    assert relative_error(whole(decoder, token_ids), reference_logits(decoder, token_ids)) <= 0.03


@given(configs(only_the_document_s_attention=True), st.integers(0, 2**31))
@settings(max_examples=15)
def test_training_computes_what_serving_computes(config: DecoderConfig, seed: int) -> None:
    """`WholeSequences` and plain products give the logits of the paged path, to rounding."""
    decoder = random_decoder(config, seed=seed)
    sequences = [random_ids(30, config.vocab_size, seed + i) for i in range(3)]
    served = torch.cat([whole(decoder, token_ids) for token_ids in sequences])
    decoder.train()
    with torch.no_grad():
        trained = decoder(
            torch.tensor(sequences).flatten(),
            torch.arange(30).repeat(3),
            WholeSequences(3, 30, torch.device("cpu")),
        )
    assert relative_error(trained, served.double().numpy()) <= 1e-5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layers", 0, "num_layers is 0, must be at least 1"),
        ("num_kv_heads", 3, "num_heads is 4, must be a multiple of num_kv_heads, 3"),
        ("hidden_size", 33, "hidden_size is 33, must be even for sinusoidal positions"),
    ],
)
def test_an_impossible_size_is_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**dataclasses.asdict(DOCUMENT) | {field: value})


def test_rotary_positions_turn_no_more_than_a_head() -> None:
    with pytest.raises(ValueError, match="rotary positions turn 8 elements, must be from 2 to 7"):
        dataclasses.replace(LLAMA_LIKE, head_dim=7)
