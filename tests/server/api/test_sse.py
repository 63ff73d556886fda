"""Events joined for the socket: all of them, in order, in pieces that stay small."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.api import sse
from server.middleware import MAX_PIECE_BYTES


@given(st.lists(st.integers(1, 2 * MAX_PIECE_BYTES).map(lambda size: b"x" * size), max_size=8))
def test_joined_events_are_whole_and_as_many_together_as_fit(events: list[bytes]) -> None:
    pieces = list(sse.joined(events))
    assert b"".join(pieces) == b"".join(events)
    assert all(len(piece) <= MAX_PIECE_BYTES or piece in events for piece in pieces)
    assert all(len(piece) + len(after) > MAX_PIECE_BYTES for piece, after in pairwise(pieces))


def test_an_event_is_made_only_when_it_is_to_be_sent() -> None:
    num_made = 0

    def make() -> Iterator[bytes]:
        nonlocal num_made
        for _ in range(1000):
            num_made += 1
            yield b"x" * 1000

    next(sse.joined(make()))
    assert num_made == MAX_PIECE_BYTES // 1000 + 1
