"""Prefixes of rank order against the same said slowly: sort every id, then walk."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling.ranking import HEAD_PROB, prefix_of_length, prefix_of_mass, ranked

TIED_SCORES = st.lists(st.integers(-4, 4).map(float) | st.just(-math.inf), min_size=1, max_size=50)


def rank_order(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


@settings(deadline=None)
@given(TIED_SCORES, st.integers(1, 50))
def test_ranked_is_by_score_then_by_lowest_id(scores: list[float], count: int) -> None:
    expected = [i for i in rank_order(scores) if scores[i] > -math.inf][:count]
    assert ranked(torch.tensor(scores, dtype=torch.float64), count).tolist() == expected


@settings(deadline=None)
@given(TIED_SCORES, st.data())
def test_prefix_of_length_is_cut_within_ties(scores: list[float], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(scores)))
    row = torch.tensor(scores, dtype=torch.float64)
    prefix = prefix_of_length(row, length)
    expected = rank_order(scores)[:length]
    assert prefix.mask(row).nonzero().flatten().tolist() == sorted(expected)
    assert prefix.last_id(row) == expected[-1]


@pytest.mark.parametrize("is_beyond", [False, True])
def test_mass_is_reached_or_exceeded(is_beyond: bool) -> None:
    """Quarters add up exactly, so 'at least' and 'more than' differ."""
    probs = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25], dtype=torch.float64)
    assert prefix_of_mass(probs, 0.5, is_beyond=is_beyond).last_id(probs) == (3 if is_beyond else 1)
    assert prefix_of_mass(probs, 0.0, is_beyond=is_beyond).last_id(probs) == 0


def test_mass_beyond_the_rounded_sum_ends_at_the_last_id_that_adds() -> None:
    probs = torch.tensor([0.0, 0.5, 0.5 - 1e-9, 1e-300, 0.0], dtype=torch.float64)
    assert prefix_of_mass(probs, 1.0).last_id(probs) == 2
    assert prefix_of_mass(probs, 1.0, is_beyond=True).last_id(probs) == 2


@pytest.mark.parametrize("is_coarse", [False, True], ids=["distinct", "bfloat16 ties"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_head_gives_the_token_of_the_full_sort(scale: float, is_coarse: bool) -> None:
    """At the edges above all: 0, almost 1, and a hair on either side of sums near the head's end."""
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(8)) * scale
    logits = logits.bfloat16().float() if is_coarse else logits
    probs = logits.double().softmax(0)
    order = rank_order(probs.tolist())
    sums = list(accumulate(probs[order].tolist()))
    num_head = int((probs > HEAD_PROB).sum())
    near = (0, 1, num_head - 2, num_head - 1, num_head, num_head + 1, 10_000, 19_990)
    edges = [sums[i] for i in near if 0 <= i < len(sums)]
    numbers = [u for edge in edges for u in (math.nextafter(edge, 0), edge, math.nextafter(edge, 2))]
    for u in [0.0, 0.1, 0.5, 0.9, 1 - 1e-9, *(u for u in numbers if u < sums[-1])]:
        last = bisect_right(sums, u)  # the first sum that exceeds u
        prefix = prefix_of_mass(probs, u, is_beyond=True)
        assert prefix.last_id(probs) == order[last]
        assert int(prefix.mask(probs).sum()) == last + 1
