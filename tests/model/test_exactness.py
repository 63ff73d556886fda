"""Promise 1, where it is made: a row's bits depend on its own sequence alone, whatever shares the step."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import DecoderConfig
from model.interface import StepItem
from model.linear import ROW_BLOCK, linear_in_row_blocks
from model.norms import RMSNorm
from model.pairs import PairLayout
from tests.model.decoders import (
    CPU,
    DOCUMENT,
    EVERYTHING_ELSE,
    GPT2_LIKE,
    LLAMA_LIKE,
    Stepper,
    configs,
    cut,
    random_decoder,
    random_ids,
    whole,
)
from tests.model.kernels.paths import ON_AND_OFF

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
NAMED = pytest.mark.parametrize(
    "config",
    [DOCUMENT, GPT2_LIKE, LLAMA_LIKE, EVERYTHING_ELSE],
    ids=["document", "gpt-2 like", "llama like", "everything else"],
)
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype == torch.float32
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


@ON_AND_OFF
@NAMED
@FORMATS
def test_token_by_token_equals_all_at_once(path: str, config: DecoderConfig, dtype: torch.dtype) -> None:
    decoder = random_decoder(config, dtype, path=path)
    token_ids = random_ids(140, config.vocab_size, seed=5)
    stepper = Stepper(decoder, 1)
    rows = [stepper.step([(0, position, [token_id])])[0] for position, token_id in enumerate(token_ids)]
    assert_same_bits(torch.cat(rows), whole(decoder, token_ids))


@ON_AND_OFF
@given(
    configs(), DTYPES, st.integers(1, 190), st.lists(st.integers(1, 70), max_size=8), st.integers(0, 2**31)
)
@settings(max_examples=40)
def test_any_chunking_gives_the_same_bits(
    path: str, config: DecoderConfig, dtype: torch.dtype, length: int, lengths: list[int], seed: int
) -> None:
    decoder = random_decoder(config, dtype, seed, path=path)
    token_ids = random_ids(length, config.vocab_size, seed)
    stepper = Stepper(decoder, 1)
    rows = [stepper.step([(0, start, piece)])[0] for start, piece in cut(token_ids, lengths)]
    assert_same_bits(torch.cat(rows), whole(decoder, token_ids))


@ON_AND_OFF
@NAMED
@FORMATS
def test_alone_equals_among_31_others(path: str, config: DecoderConfig, dtype: torch.dtype) -> None:
    """32 ragged sequences, first their prompts and then ten tokens each, in steps that hold them all."""
    decoder = random_decoder(config, dtype, path=path)
    sequences = [random_ids(11 + 5 * i, config.vocab_size, seed=i) for i in range(32)]
    stepper = Stepper(decoder, 32)
    steps = [stepper.step([(i, 0, ids[:-10]) for i, ids in enumerate(sequences)])]
    for back in range(10, 0, -1):
        steps.append(stepper.step([(i, len(ids) - back, [ids[-back]]) for i, ids in enumerate(sequences)]))
    for i, ids in enumerate(sequences):
        assert_same_bits(torch.cat([step[i] for step in steps]), whole(decoder, ids))


@ON_AND_OFF
@given(
    configs(),
    DTYPES,
    st.lists(
        st.tuples(st.integers(1, 120), st.lists(st.integers(1, 50), max_size=4)), min_size=1, max_size=6
    ),
    st.sampled_from([1, 3, 7, 1000]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30)
def test_any_mixture_of_chunks_gives_the_same_bits(
    path: str,
    config: DecoderConfig,
    dtype: torch.dtype,
    wishes: list[tuple[int, list[int]]],
    max_pairs: int,
    random: Random,
) -> None:
    """Sequences in pieces, each step a random choice of them, with attention in groups of any size."""
    decoder = random_decoder(config, dtype, path=path)
    sequences = [random_ids(length, config.vocab_size, seed) for seed, (length, _) in enumerate(wishes)]
    left = {i: cut(ids, wishes[i][1]) for i, ids in enumerate(sequences)}
    rows: dict[int, list[torch.Tensor]] = {i: [] for i in left}
    stepper = Stepper(decoder, len(sequences), max_pairs)
    while pending := [i for i, pieces in left.items() if pieces]:
        chosen = random.sample(pending, k=1 + len(pending) // 2)
        for i, logits in zip(chosen, stepper.step([(i, *left[i].pop(0)) for i in chosen]), strict=True):
            rows[i].append(logits)
    for i, ids in enumerate(sequences):
        assert_same_bits(torch.cat(rows[i]), whole(decoder, ids))


@ON_AND_OFF
@NAMED
@FORMATS
def test_no_position_sees_a_later_one(path: str, config: DecoderConfig, dtype: torch.dtype) -> None:
    """Change everything from some position on: the bits before it stay."""
    decoder = random_decoder(config, dtype, path=path)
    token_ids = random_ids(150, config.vocab_size, seed=7)
    expected = whole(decoder, token_ids)
    for position in (1, 2, 63, 64, 65, 149):
        changed = [*token_ids[:position], *((t + 1) % config.vocab_size for t in token_ids[position:])]
        actual = whole(decoder, changed)
        assert_same_bits(actual[:position], expected[:position])
        assert not torch.equal(actual[position:], expected[position:])


@ON_AND_OFF
def test_what_a_block_held_before_changes_nothing(path: str) -> None:
    """Blocks come from sequences that ended, and one that failed may have left NaN in them."""
    decoder = random_decoder(DOCUMENT, path=path)
    token_ids = random_ids(70, DOCUMENT.vocab_size, seed=9)
    stepper = Stepper(decoder, 1)
    stepper.cache.keys.fill_(torch.nan)
    stepper.cache.values.fill_(torch.nan)
    assert_same_bits(stepper.step([(0, 0, token_ids)])[0], whole(decoder, token_ids))


@ON_AND_OFF
@NAMED
@FORMATS
def test_the_bits_do_not_depend_on_the_number_of_threads(
    path: str, config: DecoderConfig, dtype: torch.dtype
) -> None:
    decoder = random_decoder(config, dtype, path=path)
    token_ids = random_ids(100, config.vocab_size, seed=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = whole(decoder, token_ids)
        torch.set_num_threads(2)
        assert_same_bits(whole(decoder, token_ids), alone)
    finally:
        torch.set_num_threads(before)


@FORMATS
@pytest.mark.parametrize("shape", [(256, 5632), (5632, 256), (768, 4096)])
def test_a_product_large_enough_to_be_split_has_the_same_bits_on_any_threads(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape[1], shape[0], generator=generator).to(dtype)
    x = torch.randn(20, shape[0], generator=generator).to(dtype)
    before = torch.get_num_threads()
    try:
        products = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            products.append(linear_in_row_blocks(x, weight, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


@FORMATS
@pytest.mark.parametrize("shape", [(256, 1024), (1024, 256), (100, 37), (1, 1), (2048, 300)])
def test_a_row_of_a_product_is_the_same_in_any_place(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape[1], shape[0], generator=generator).to(dtype)
    bias = torch.randn(shape[1], generator=generator).to(dtype)
    row = torch.randn(1, shape[0], generator=generator).to(dtype)
    expected = linear_in_row_blocks(row, weight, bias)
    for num_rows in (2, ROW_BLOCK - 1, ROW_BLOCK, ROW_BLOCK + 1, 3 * ROW_BLOCK + 5):
        for place in {0, 1, num_rows // 2, num_rows - 1}:
            x = torch.randn(num_rows, shape[0], generator=generator).to(dtype)
            x[place] = row
            assert torch.equal(linear_in_row_blocks(x, weight, bias)[place], expected[0])


@FORMATS
def test_rms_norm_of_a_row_is_the_same_in_any_place(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 64, 100, 576, 2048):
        norm = RMSNorm(size, 1e-5).to(dtype)
        torch.nn.init.ones_(norm.weight)
        row = torch.randn(1, size, generator=generator).to(dtype)
        with torch.inference_mode():
            expected = norm(row)
            for num_rows in (2, 3, 16, 33, 500):
                x = torch.randn(num_rows, size, generator=generator).to(dtype)
                x[num_rows // 2] = row
                assert torch.equal(norm(x)[num_rows // 2], expected[0])


@ON_AND_OFF
@FORMATS
def test_whom_a_token_shares_its_experts_with_changes_nothing(path: str, dtype: torch.dtype) -> None:
    """Each row of a mixture by itself, and among others of which most go to the same expert."""
    assert EVERYTHING_ELSE.experts is not None
    mixture = random_decoder(EVERYTHING_ELSE, dtype, path=path).get_submodule("layers.0.feed_forward")
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(1, EVERYTHING_ELSE.hidden_size, generator=generator).to(dtype).repeat(40, 1)
    others = torch.randn(23, EVERYTHING_ELSE.hidden_size, generator=generator).to(dtype)
    x = torch.cat((alike, others))[torch.randperm(63, generator=generator)]
    with torch.inference_mode():
        together = mixture(x)
        for row in range(len(x)):
            assert torch.equal(mixture(x[row : row + 1])[0], together[row])


def test_a_window_leaves_out_the_tiles_of_which_no_row_sees_anything() -> None:
    """At position 150, a window of 70 reaches the tiles from 64 and from 128, and one of 5 only the last."""
    item = StepItem(token_ids=[1], start=150, block_table=range(10))
    layout = PairLayout.build([item], 1000, CPU, (None, 70, 5, 70))
    first_keys = {
        window: [start for group in groups for start in group.pair_start.tolist()]
        for window, groups in layout.groups.items()
    }
    assert first_keys == {None: [0, 64, 128], 70: [64, 128], 5: [128]}


LIVES = """
import hashlib, os
import numpy, torch
from model.decoder import build_empty
from tests.model.decoders import GPT2_LIKE

torch.set_num_threads(2)
numbers = torch.from_numpy(numpy.linspace(-4, 4, 2**17, dtype=numpy.float32))
for _ in range(150):
    if not os.fork():
        build_empty(GPT2_LIKE)
        print(hashlib.sha256(numbers.exp().numpy()).hexdigest(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_process_computes_with_the_same_functions() -> None:
    """3 in 100 had others on their second thread, which was the first to call MKL's (`settle_library`)."""
    lives = subprocess.run([sys.executable, "-c", LIVES], capture_output=True, text=True, check=True)
    found = lives.stdout.split()
    assert len(found) == 150
    assert len(set(found)) == 1
