"""Rankings against the same said slowly: sort every id, then walk."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.sampling.ranking import HEAD_PROBS, BeyondHeadError, Ranking, Softmax, ordered, shortlist

TIED_SCORES = st.lists(st.integers(-4, 4).map(float) | st.just(-math.inf), min_size=1, max_size=50)


def rank_order(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def softmax_of(scores: list[float]) -> Softmax:
    return Softmax(np.array(scores), max(scores))


def normal(vocab_size: int, scale: float, *, is_coarse: bool = False) -> NDArray[np.float32]:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(8)) * scale
    array: NDArray[np.float32] = (logits.bfloat16().float() if is_coarse else logits).numpy()
    return array


@settings(deadline=None)
@given(TIED_SCORES)
def test_order_is_by_score_then_by_lowest_id(scores: list[float]) -> None:
    assert ordered(np.array(scores)).tolist() == rank_order(scores)


@settings(deadline=None)
@given(TIED_SCORES.filter(lambda scores: max(scores) > -math.inf), st.integers(1, 50))
def test_best_are_the_first_above_minus_infinity(scores: list[float], count: int) -> None:
    expected = [i for i in rank_order(scores) if scores[i] > -math.inf]
    softmax = softmax_of(scores)
    assert softmax.best(count) == [(i, scores[i]) for i in expected[:count]]
    assert softmax.all().ids.tolist() == expected
    assert softmax.all().first(count).ids.tolist() == expected[:count], "cut within ties"


@pytest.mark.parametrize("count", [1, 5, 40, 1_000, 4_000, 20_000])
@pytest.mark.parametrize("is_coarse", [False, True], ids=["distinct", "bfloat16 ties"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shortlist_holds_the_best_and_all_above_its_last(
    dtype: type[np.floating], is_coarse: bool, count: int
) -> None:
    values = normal(20_000, 3.0, is_coarse=is_coarse).astype(dtype)
    ids = shortlist(values, count)
    assert ids.tolist() == sorted(ids.tolist())
    assert set(rank_order(values.tolist())[:count]) <= set(ids.tolist())
    assert len(ids) == np.count_nonzero(values >= values[ids].min())
    assert is_coarse or count > 1_000 or len(ids) < 1.5 * count + 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shortlist_of_a_row_at_the_ends_of_its_numbers(dtype: type[np.floating]) -> None:
    values = np.full(20_000, -np.inf, dtype=dtype)
    assert shortlist(values, 3).tolist() == []
    lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max / 4
    values[[5, 9_000]] = lowest / 4, highest
    assert shortlist(values, 3).tolist() == [5, 9_000]
    values[:] = lowest / 4
    assert len(shortlist(values, 3)) == 20_000


def test_shortlist_holds_what_temperature_will_make_equal() -> None:
    """Beside 10, 1e-30 and 2e-30 are both 10 lower: then the lower id is the better."""
    values = np.full(20_000, -5.0)
    values[[3, 7, 11]] = 10.0, 1e-30, 2e-30
    assert shortlist(values, 2).tolist() == [3, 7, 11]


@pytest.mark.parametrize("is_beyond", [False, True])
def test_mass_is_reached_or_exceeded(is_beyond: bool) -> None:
    """Quarters add up exactly, so 'at least' and 'more than' differ."""
    ranking = softmax_of([1.0, 1.0, -math.inf, 1.0, 1.0]).all()
    assert ranking.num_to_mass(0.5, is_beyond=is_beyond) == (3 if is_beyond else 2)
    assert ranking.num_to_mass(0.0, is_beyond=is_beyond) == 1


@pytest.mark.parametrize("is_beyond", [False, True])
def test_mass_beyond_the_rounded_sum_ends_at_the_last_id_that_adds(is_beyond: bool) -> None:
    weights = np.array([0.5, 0.5 - 1e-9, 1e-300, 0.0])
    whole, head = (
        Ranking(np.arange(4), np.log(weights + 1e-320), weights, 0.0, 1.0, is_whole=whole)
        for whole in (True, False)
    )
    assert whole.num_to_mass(1.0, is_beyond=is_beyond) == 2
    with pytest.raises(BeyondHeadError):
        head.num_to_mass(1.0, is_beyond=is_beyond)


def test_what_is_not_listed_cannot_be_cut_to() -> None:
    head, *_, whole = Softmax(normal(20_000, 1.0), normal(20_000, 1.0).max().item()).heads(3)
    assert len(head.ids) >= 3
    assert not head.is_whole
    with pytest.raises(BeyondHeadError):
        head.first(len(head.ids) + 1)
    assert len(whole.first(30_000).ids) == 20_000


@pytest.mark.parametrize("is_coarse", [False, True], ids=["distinct", "bfloat16 ties"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_heads_give_the_token_of_the_full_sort(scale: float, is_coarse: bool) -> None:
    """At the edges above all: 0, almost 1, and a hair on either side of sums near a head's end."""
    logits = normal(20_000, scale, is_coarse=is_coarse)
    softmax = Softmax(logits, logits.max().item())
    heads = list(softmax.heads(1))
    listed: list[float] = logits.tolist()
    order = rank_order(listed)
    assert softmax.all().ids.tolist() == order
    probs = softmax.all().probs
    sums = list(accumulate(probs.tolist()))
    ends = [int((probs > floor).sum()) for floor in HEAD_PROBS]
    assert scale < 1 or [len(head.ids) for head in heads] == [*ends, 20_000]  # below 1, the heads are empty
    near = (0, 1, *(end + i for end in ends for i in (-2, -1, 0, 1)), 10_000, 19_990)
    edges = [sums[i] for i in near if 0 <= i < len(sums)]
    numbers = [u for edge in edges for u in (math.nextafter(edge, 0), edge, math.nextafter(edge, 2))]
    for u in [0.0, 0.1, 0.5, 0.9, 1 - 1e-9, *(u for u in numbers if u < sums[-1])]:
        last = bisect_right(sums, u)  # the first sum that exceeds u
        for head in heads:
            if head.is_whole or last < len(head.ids):
                assert head.num_to_mass(u, is_beyond=True) == last + 1
                assert head.ids[last] == order[last]
            else:
                with pytest.raises(BeyondHeadError):
                    head.num_to_mass(u, is_beyond=True)
