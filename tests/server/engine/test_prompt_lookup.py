"""What is guessed, against its definition by brute force; and that guessing pays or stops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.prompt_lookup import EARNED, MAX_MATCH, MAX_PLACES, MIN_MATCH, PromptLookup


def in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens, from the last, are the same."""
    length = 0
    while length < min(len(first), len(second)) and first[-length - 1] == second[-length - 1]:
        length += 1
    return length


def guessed(token_ids: Sequence[int], limit: int) -> list[int]:
    """The definition: every earlier place, the latest first."""
    ends = [
        end for end in range(len(token_ids) - 1, 0, -1) if in_common(token_ids[:end], token_ids) >= MIN_MATCH
    ][:MAX_PLACES]
    if not ends:
        return []
    best = max(ends, key=lambda end: min(MAX_MATCH, in_common(token_ids[:end], token_ids)))
    all_ids = list(token_ids)
    for place in range(best, best + limit):
        all_ids.append(all_ids[place])
    return all_ids[len(token_ids) :]


@given(
    token_ids=st.integers(1, 4).flatmap(lambda n: st.lists(st.integers(0, n), max_size=80)),
    num_looks=st.integers(1, 20),
    limit=st.integers(1, 20),
)
@settings(max_examples=150)
def test_a_guess_is_what_followed_the_place_most_like_the_end(
    token_ids: list[int], num_looks: int, limit: int
) -> None:
    """Whenever it is asked in between, as the tokens grow."""
    lookup = PromptLookup()
    lookup.credit = float(limit)
    for look in range(1, num_looks + 1):
        known = token_ids[: len(token_ids) * look // num_looks]
        assert lookup.draft(known, limit) == guessed(known, limit)


@pytest.mark.parametrize(
    ("token_ids", "guess"),
    [
        ([1, 2, 3, 4, 5, 9, 2, 3], [4, 5, 9, 2]),
        ([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], [7, 2, 3, 8]),  # three in common, not the latest
        ([1, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2, 8]),  # the latest of two
        ([6, 6, 6], [6, 6, 6, 6]),
        ([1, 2, 3, 4, 5, 3], []),
        ([1], []),
    ],
)
def test_examples(token_ids: list[int], guess: list[int]) -> None:
    lookup = PromptLookup()
    lookup.credit = 4.0
    assert lookup.draft(token_ids, 10) == guess


def test_guesses_double_while_they_are_right() -> None:
    lookup = PromptLookup()
    numbers = []
    for _ in range(6):
        numbers.append(len(lookup.draft([1, 1, 1], 16)))
        lookup.count(numbers[-1], numbers[-1], 16)
    assert numbers == [1, 2, 4, 8, 16, 16]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.integers(1, 16))
def test_no_more_guesses_are_lost_than_won_but_for_what_tokens_earn(parts: list[float], limit: int) -> None:
    lookup = PromptLookup()
    num_lost = num_won = 0
    for part in parts:
        num_drafts = len(lookup.draft([1, 1, 1], limit))
        num_accepted = int(part * num_drafts)
        lookup.count(num_drafts, num_accepted, limit)
        num_won += num_accepted
        num_lost += num_drafts - num_accepted
    assert num_lost <= 1 + num_won + EARNED * len(parts)
