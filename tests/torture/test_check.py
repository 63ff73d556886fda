"""What the torture calls lost: each way in which a stream can be wrong, written by hand, is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.torture.check import Choice, End, Event, Outcome, StreamCheck, Token, Wrong, check_refusal
from bench.torture.wishes import Limits, mixed, steady
from server.api.sse import encode

TOKENS = [Token(id=i, text=f" {i}", logprob=-0.1 * i, special=False) for i in range(1, 4)]
ALONE = Choice(generated_text=" 1 2 3", finish_reason="length", seed=7, tokens=TOKENS)
DETAILS = {"finish_reason": "length", "seed": 7, "timings": {"cached_tokens": 0}}


def blocks() -> list[bytes]:
    """The stream as it should be, event by event."""
    events = [Event(index=i, token=token) for i, token in enumerate(TOKENS, 1)]
    events[-1] = Event(index=3, token=TOKENS[-1], generated_text=" 1 2 3", details=DETAILS)
    return [encode(event, event_id=event.index) for event in events]


def follow(stream: list[bytes]) -> Outcome:
    """The stream, byte by byte, to the end of its connection."""
    outcome = Outcome()
    check = StreamCheck(ALONE, outcome)
    for byte in b"".join(stream):
        check.take(bytes([byte]))
    check.finish()
    return outcome


def test_the_expected_stream_is_whole() -> None:
    outcome = follow([b":\n\n", *blocks()])
    assert (outcome.end, outcome.num_tokens) == (End.WHOLE, 3)


def test_an_error_after_right_tokens_is_a_failure_and_no_loss() -> None:
    outcome = follow([*blocks()[:2], encode({"error": "it failed", "error_type": "generation"})])
    assert (outcome.end, outcome.why) == (End.FAILED, "it failed")


def other(index: int, **changes: object) -> bytes:
    """The event of this index, with another token."""
    token = TOKENS[index - 1]
    fields = {name: getattr(token, name) for name in token.__struct_fields__} | changes
    return encode(Event(index=index, token=Token(**fields)), event_id=index)


HARMS: dict[str, Callable[..., list[bytes]]] = {
    "lost": lambda a, b, c: [a, c],
    "doubled": lambda a, b, c: [a, a, b, c],
    "reordered": lambda a, b, c: [b, a, c],
    "foreign": lambda a, b, c: [a, other(2, id=9), c],
    "of other bits": lambda a, b, c: [a, other(2, logprob=-0.2000000000000001), c],
    "of another text": lambda a, b, c: [a, other(2, text=" two"), c],
    "cut at an event": lambda a, b, c: [a, b],
    "cut in an event": lambda a, b, c: [a, b, c[:-1]],
    "ended twice": lambda a, b, c: [a, b, c, c],
    "failed after its end": lambda a, b, c: [a, b, c, encode({"error": "late", "error_type": "internal"})],
    "numbered wrongly": lambda a, b, c: [a, b.replace(b"id: 2", b"id: 3"), c],
    "no event": lambda a, b, c: [a, b"data: nothing\n\n", b, c],
    "another whole text": lambda a, b, c: [a, b, c.replace(b'"generated_text":" 1', b'"generated_text":" 4')],
    "another seed": lambda a, b, c: [a, b, c.replace(b'"seed":7', b'"seed":8')],
    "another reason": lambda a, b, c: [a, b, c.replace(b'"length"', b'"eos_token"')],
    "an error without its type": lambda a, b, c: [a, encode({"error": "no type"})],
    "an error that tells more": lambda a, b, c: [
        a,
        encode({"error": "e", "error_type": "t", "at": "x"}),
    ],
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_stream_that_was_harmed_is_lost(harm: Callable[..., list[bytes]]) -> None:
    with pytest.raises(Wrong):
        follow(harm(*blocks()))


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (500, {"retry-after": "1"}, b'{"error":"e","error_type":"internal"}'),
        (429, {}, b'{"error":"e","error_type":"overloaded"}'),
        (503, {"retry-after": "soon"}, b'{"error":"e","error_type":"unavailable"}'),
        (429, {"retry-after": "1"}, b"{}"),
        (429, {"retry-after": "1"}, b"<html>"),
    ],
)
def test_a_refusal_must_have_a_true_status_a_time_and_the_documented_shape(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    with pytest.raises(Wrong):
        check_refusal(status, headers, body)


def test_wishes_are_the_same_for_the_same_seed_and_fit_the_context() -> None:
    limits = Limits(vocab_size=100, max_total_tokens=512, max_new_tokens=64, max_choices=4)
    drawn = mixed(3, limits, 200)
    assert [wish.key for wish in drawn[:50]] == [wish.key for wish in mixed(3, limits, 50)]
    assert len({wish.key for wish in drawn}) == 200
    for wish in (*drawn, *steady(3, limits, 5, 1000, 500)):
        num_prompt_tokens = 64 if isinstance(wish.inputs, str) else len(wish.inputs)
        assert 1 <= wish.parameters["max_new_tokens"] <= min(64, 512 - num_prompt_tokens)
