"""Native attention is right, and a row's bits depend on its own sequence alone.

Sequences of random lengths come in steps of any cut, in blocks scattered over a cache full of NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention import Attend
from model.batch import ForwardBatch
from model.config import DecoderConfig
from model.interface import StepItem
from model.kernels.attention import NativeAttention, make_attend
from model.kernels.library import Kernels
from model.kv_cache import BLOCK_SIZE, KVCache
from tests.model import reference
from tests.model.decoders import CPU, LLAMA_LIKE
from tests.model.kernels.paths import DTYPES, EACH, same_bits

FEW_EXAMPLES = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
BASE = dataclasses.replace(LLAMA_LIKE, num_layers=2, rotations=(None, None), max_positions=4096)


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    """One of attention's forms, of two layers."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    changes: dict[str, Any] = {
        "num_heads": kv_heads * group,
        "num_kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([1, 7, 8, 16, 37, 64, 80, 100])),
        "attention_softcap": draw(st.sampled_from([None, None, 2.0, 50.0])),
        "has_attention_sinks": draw(st.booleans()),
        "windows": draw(st.sampled_from([(), (None, 1), (None, 3), (None, 20), (None, 290)])),
    }
    if draw(st.booleans()):
        changes |= {
            "positions": "alibi",
            "rotations": (),
            "alibi_slopes": tuple(2.0 ** -(i + 1) for i in range(kv_heads * group)),
            "is_alibi_rounded": draw(st.booleans()),
        }
    return dataclasses.replace(BASE, **changes)


@dataclasses.dataclass(frozen=True)
class Rows:
    """One sequence's queries, keys and values: [length, heads, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor


def random_rows(
    config: DecoderConfig, dtype: torch.dtype, lengths: Sequence[int], seed: int = 0
) -> list[Rows]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Rows(
            *(
                torch.randn(length, heads, config.head_dim, generator=generator).to(dtype)
                for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
            )
        )
        for length in lengths
    ]


def sinks_of(config: DecoderConfig) -> Tensor | None:
    return torch.linspace(-1.0, 3.0, config.num_heads) if config.has_attention_sinks else None


class Stepper:
    """Sequences in a cache that is full of NaN, their blocks at random; runs the last layer."""

    def __init__(
        self, kernels: Kernels | None, config: DecoderConfig, rows: Sequence[Rows], seed: int = 0
    ) -> None:
        counts = [-(-len(each.q) // BLOCK_SIZE) for each in rows]
        blocks = list(range(sum(counts) + 2))
        Random(seed).shuffle(blocks)
        self.tables = [[blocks.pop() for _ in range(count)] for count in counts]
        self.kernels, self.config, self.rows = kernels, config, rows
        self.cache = KVCache(config, sum(counts) + 2, rows[0].k.dtype, CPU)
        if kernels is not None:  # which, unlike plain torch, take nothing of what no row sees
            self.cache.keys.fill_(torch.nan)
            self.cache.values.fill_(torch.nan)

    def step(self, parts: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """One step of parts (sequence, first row, last row + 1): what each came to, like its queries."""
        items = [
            StepItem(token_ids=[0] * (end - start), start=start, block_table=self.tables[i])
            for i, start, end in parts
        ]
        batch = ForwardBatch.build(items, CPU)
        attend: Attend = make_attend(batch, self.cache, self.config, self.kernels, 100)
        q, k, v = (
            torch.cat([getattr(self.rows[i], name)[start:end] for i, start, end in parts]) for name in "qkv"
        )
        out = attend(self.config.num_layers - 1, q, k, v, sinks_of(self.config))
        return list(out.split([end - start for _, start, end in parts]))

    def whole(self) -> list[Tensor]:
        """All rows of all sequences in one step."""
        return self.step([(i, 0, len(each.q)) for i, each in enumerate(self.rows)])


def in_float64(config: DecoderConfig, rows: Rows) -> tuple[Tensor, Tensor]:
    """The formula, and the same sum over the sizes of its summands."""
    q, k, v = (each.double() for each in (rows.q, rows.k, rows.v))
    k, v = (each.repeat_interleave(config.num_heads // config.num_kv_heads, 1) for each in (k, v))
    positions = torch.arange(len(q))
    scores = torch.einsum("ihd,jhd->hij", q, k) * config.score_scale
    if config.attention_softcap is not None:
        scores = config.attention_softcap * torch.tanh(scores / config.attention_softcap)
    if config.alibi_slopes:
        scores = scores + torch.stack(
            [
                torch.from_numpy(reference.alibi(config, head, positions.numpy(), config.score_scale))
                for head in range(config.num_heads)
            ]
        ).unsqueeze(1)
    window = config.layer_windows[-1] or len(q)
    distance = positions[:, None] - positions
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    if (sinks := sinks_of(config)) is not None:
        column = sinks.double()[:, None, None].expand(-1, len(q), 1)
        scores = torch.cat((scores, column), -1)
    weights = torch.softmax(scores, -1)[..., : len(q)]
    return torch.einsum("hij,jhd->ihd", weights, v), torch.einsum("hij,jhd->ihd", weights, v.abs())


def assert_near(actual: Tensor, expected: Tensor, sizes: Tensor) -> None:
    """Within what float32 loses in scores up to 2^5, and one rounding to the dtype."""
    bound = 2.0**-16 * sizes + torch.finfo(actual.dtype).eps * expected.abs()
    assert ((actual.double() - expected).abs() <= bound).all()


LENGTHS = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 300)), min_size=1, max_size=3)


@EACH
@given(configs(), st.sampled_from(DTYPES), LENGTHS)
@FEW_EXAMPLES
def test_it_equals_the_formula(
    kernels: Kernels, config: DecoderConfig, dtype: torch.dtype, lengths: list[int]
) -> None:
    rows = random_rows(config, dtype, lengths)
    for actual, each in zip(Stepper(kernels, config, rows).whole(), rows, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, *in_float64(config, each))


@EACH
@given(configs(), st.sampled_from(DTYPES), LENGTHS)
@FEW_EXAMPLES
def test_it_is_near_to_plain_torch(
    kernels: Kernels, config: DecoderConfig, dtype: torch.dtype, lengths: list[int]
) -> None:
    rows = random_rows(config, dtype, lengths)
    actual, expected = (Stepper(which, config, rows).whole() for which in (kernels, None))
    for a, b, each in zip(actual, expected, rows, strict=True):
        assert_near(a, b.double(), 2 * in_float64(config, each)[1])


@EACH
@given(configs(), st.sampled_from(DTYPES), LENGTHS, st.integers(1, 3), st.randoms(use_true_random=False))
@FEW_EXAMPLES
def test_any_steps_on_any_threads_in_any_blocks_give_the_same_bits(
    kernels: Kernels,
    config: DecoderConfig,
    dtype: torch.dtype,
    lengths: list[int],
    threads: int,
    random: Random,
) -> None:
    """Each sequence alone and at once, against all of them in pieces, some of one row."""
    rows = random_rows(config, dtype, lengths)
    alone = [Stepper(kernels, config, [each]).whole()[0] for each in rows]
    stepper = Stepper(kernels, config, rows, seed=random.randrange(1000))
    done = [0] * len(rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        while left := [i for i, length in enumerate(lengths) if done[i] < length]:
            parts = []
            for i in random.sample(left, random.randint(1, len(left))):
                size = random.choice([1, 2, 5, 16, 100])
                parts.append((i, done[i], min(done[i] + size, lengths[i])))
                done[i] = parts[-1][2]
            for (i, start, end), out in zip(parts, stepper.step(parts), strict=True):
                assert same_bits(out, alone[i][start:end])
    finally:
        torch.set_num_threads(before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("windows", [(), (None, 300)], ids=["all keys", "a window"])
def test_one_row_at_a_time_over_many_spans_equals_all_at_once(
    kernels: Kernels, dtype: torch.dtype, windows: tuple[int | None, ...]
) -> None:
    """And near the edges of blocks and spans, where each case of the kernel begins and ends."""
    config = dataclasses.replace(BASE, num_heads=5, num_kv_heads=1, head_dim=40, windows=windows)
    rows = random_rows(config, dtype, [1100])
    (whole,) = Stepper(kernels, config, rows).whole()
    assert_near(whole, *in_float64(config, rows[0]))
    stepper = Stepper(kernels, config, rows, seed=1)
    stepper.whole()
    for position in (
        0,
        1,
        15,
        16,
        17,
        254,
        255,
        256,
        257,
        299,
        300,
        511,
        512,
        560,
        767,
        768,
        1023,
        1024,
        1099,
    ):
        (row,) = stepper.step([(0, position, position + 1)])
        assert same_bits(row[0], whole[position])


@EACH
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_with_the_rows_that_see_it(
    kernels: Kernels, dtype: torch.dtype, group: int
) -> None:
    """NaN and infinities in a key, a value or a query: earlier rows and other sequences keep their bits."""
    config = dataclasses.replace(BASE, num_heads=4, num_kv_heads=4 // group, head_dim=24)
    rows = random_rows(config, dtype, [50, 50, 50, 50])
    expected = Stepper(kernels, config, rows).whole()
    rows[0].k[21, 1, 3], rows[1].v[22, 0, 5], rows[2].q[23, 3, 0] = torch.nan, torch.inf, torch.nan
    found = Stepper(kernels, config, rows).whole()
    assert same_bits(found[0][:21], expected[0][:21])
    assert same_bits(found[0][:, :group], expected[0][:, :group])
    assert found[0][21:, group : 2 * group].isnan().all()
    assert same_bits(found[1][:22], expected[1][:22])
    reached = found[1][22:, :group, 5]
    if kernels.path == "amx" and dtype == torch.bfloat16:
        # In tiles a weight is the sum of two, of which one may be 0 or negative: then it is NaN.
        assert not reached.isfinite().any()
    else:
        assert reached.isinf().all()
    assert same_bits(found[1][22:, :group, :5], expected[1][22:, :group, :5])
    assert found[2][23, 3].isnan().all()
    assert same_bits(found[2][24:], expected[2][24:])
    assert same_bits(found[3], expected[3])


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_apart_scores_do_not_overflow(kernels: Kernels, dtype: torch.dtype) -> None:
    """Where one key outweighs all others by e^1000, its value is the answer: early, late and at the edges."""
    config = dataclasses.replace(BASE, num_heads=1, num_kv_heads=1, head_dim=16)
    for place in (0, 15, 16, 511, 512, 599):
        (rows,) = random_rows(config, dtype, [600])
        rows.q.fill_(10.0)
        rows.k.fill_(-20.0)
        rows.k[place] = 20.0
        (out,) = Stepper(kernels, config, [rows]).whole()
        assert same_bits(out[place:, 0], rows.v[place, 0].expand(600 - place, -1).contiguous())


def test_a_batch_knows_its_rows() -> None:
    items = [
        StepItem(token_ids=[5, 6], start=30, block_table=[3, 1]),
        StepItem(token_ids=(7,), start=0, block_table=range(1)),
    ]
    batch = ForwardBatch.build(items, CPU)
    assert batch.token_ids.tolist() == [5, 6, 7]
    assert batch.positions.tolist() == [30, 31, 0]


@EACH
def test_projections_need_not_be_contiguous(kernels: Kernels) -> None:
    config = dataclasses.replace(BASE, num_heads=2, num_kv_heads=2, head_dim=8)
    (rows,) = random_rows(config, torch.float32, [20])
    (expected,) = Stepper(kernels, config, [rows]).whole()
    batch = ForwardBatch.build([StepItem(token_ids=[0] * 20, start=0, block_table=[1, 0])], CPU)
    attend = NativeAttention(batch, KVCache(config, 2, torch.float32, CPU), config, kernels)
    q, k, v = torch.cat((rows.q, rows.k, rows.v), 1).split(2, 1)
    assert same_bits(attend(1, q, k, v, None), expected)


@EACH
@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_has_left_the_window_may_be_no_number(kernels: Kernels, dtype: torch.dtype, group: int) -> None:
    """NaN in keys and values that a neighbour still sees: a row that does not keeps its bits."""
    config = dataclasses.replace(
        BASE, num_heads=16, num_kv_heads=16 // group, head_dim=24, windows=(None, 20)
    )
    rows = random_rows(config, dtype, [70])
    expected = Stepper(kernels, config, rows).whole()[0]
    rows[0].k[:32], rows[0].v[:32] = torch.nan, torch.nan
    found = Stepper(kernels, config, rows).whole()[0]
    assert found[:51].isnan().all()  # the last of them is at 31
    assert same_bits(found[51:], expected[51:])
