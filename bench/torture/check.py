"""Whether an answer is the expected one, checked while it is read: token by token, bit for bit.

An answer has one of five ends. LOST is what the project promises never to happen; the others are honest.
"""

from __future__ import annotations

import enum
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import msgspec


class End(enum.Enum):
    """How an answer ended."""

    OPEN = "open"  # not yet
    WHOLE = "whole"  # every token, as expected
    REFUSED = "refused"  # 429 or 503 before the first byte, with Retry-After
    FAILED = "failed"  # an error of the documented shape, after tokens as expected
    LEFT = "left"  # the client went away; until then all was as expected
    LOST = "lost"  # a token missing, doubled, foreign or of other bits; a cut; an undocumented answer


class Wrong(Exception):
    """What makes an answer LOST."""


class Token(msgspec.Struct, frozen=True):
    """As on the wire. Equal means: the same bits."""

    id: int
    text: str
    logprob: float
    special: bool


class Event(msgspec.Struct, frozen=True):
    """One event of a stream, whichever it is."""

    index: int = 0
    token: Token | None = None
    top_tokens: list[Token] = []
    generated_text: str | None = None
    details: dict[str, Any] | None = None
    error: str | None = None
    error_type: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """What is compared of one answer; seeds and reasons are part of the promise, times are not."""

    generated_text: str
    finish_reason: str
    seed: int | None
    tokens: list[Token]
    top_tokens: list[list[Token]] = []
    prefill: list[dict[str, Any]] = []


Answer = list[Choice]  # one, or `n` of them


@dataclass(slots=True, eq=False)
class Outcome:
    """What has become of one request so far. Times by `time.perf_counter`."""

    end: End = End.OPEN
    why: str = ""
    status: int = 0
    sent_s: float = field(default_factory=time.perf_counter)
    head_s: float = 0.0
    end_s: float = 0.0
    token_s: array[float] = field(default_factory=lambda: array("d"))  # of a stream
    num_tokens: int = 0
    cached_tokens: int = 0

    def settle(self, end: End, why: str = "") -> None:
        """The first end is the end."""
        if self.end is End.OPEN:
            self.end, self.why, self.end_s = end, why, time.perf_counter()


class StreamCheck:
    """Follows one stream. Without an expected answer, only whether it agrees with itself."""

    def __init__(self, expected: Choice | None, outcome: Outcome) -> None:
        self._expected = expected
        self._outcome = outcome
        self._held = b""
        self._texts: list[str] = []

    def take(self, piece: bytes) -> None:
        """Some bytes of the body. Raises `Wrong`."""
        *blocks, self._held = (self._held + piece).split(b"\n\n")
        for block in blocks:
            if block != b":":
                self._block(block)

    def finish(self) -> None:
        """The body ended as HTTP says it should. Raises `Wrong` if the stream had not."""
        if self._held:
            raise Wrong(f"half an event at the end: {self._held!r}")
        if self._outcome.end is End.OPEN:
            raise Wrong(f"no last event after {self._outcome.num_tokens} tokens")

    def _block(self, block: bytes) -> None:
        if self._outcome.end is not End.OPEN:
            raise Wrong(f"an event after the last: {block!r}")
        first, separator, data = block.rpartition(b"data: ")
        try:
            event = msgspec.json.decode(data, type=Event)
        except msgspec.DecodeError:
            raise Wrong(f"not an event: {block!r}") from None
        if not separator or first not in (b"", b"id: %d\n" % event.index):
            raise Wrong(f"not an event: {block!r}")
        if event.error is not None:
            check_error(data)
            self._outcome.settle(End.FAILED, event.error)
        else:
            self._token(event)

    def _token(self, event: Event) -> None:
        place = self._outcome.num_tokens
        if event.index != place + 1 or event.token is None:
            raise Wrong(f"index {event.index} after {place}")
        if self._expected is not None:
            self._compare(place, event, self._expected)
        self._outcome.num_tokens += 1
        self._outcome.token_s.append(time.perf_counter())
        if not event.token.special:
            self._texts.append(event.token.text)
        if event.generated_text is not None:
            if event.generated_text != "".join(self._texts):
                raise Wrong("the text is not that of its tokens")
            self._last(event.generated_text, event.details or {})

    def _compare(self, place: int, event: Event, expected: Choice) -> None:
        if place >= len(expected.tokens):
            raise Wrong(f"token {place + 1} of {len(expected.tokens)}")
        if event.token != expected.tokens[place]:
            raise Wrong(f"token {place + 1} is {event.token}, alone {expected.tokens[place]}")
        if expected.top_tokens and event.top_tokens != expected.top_tokens[place]:
            alone = expected.top_tokens[place]
            raise Wrong(f"the alternatives to token {place + 1} are {event.top_tokens}, alone {alone}")

    def _last(self, text: str, details: dict[str, Any]) -> None:
        expected = self._expected
        if expected is not None:
            if self._outcome.num_tokens != len(expected.tokens):
                raise Wrong(f"the end after {self._outcome.num_tokens} of {len(expected.tokens)} tokens")
            if text != expected.generated_text:
                raise Wrong("the text is not that of the request alone")
            if (details["finish_reason"], details["seed"]) != (expected.finish_reason, expected.seed):
                raise Wrong(f"ended by {details['finish_reason']}, alone by {expected.finish_reason}")
        self._outcome.cached_tokens = details["timings"]["cached_tokens"]
        self._outcome.settle(End.WHOLE)


def read_answer(body: bytes) -> tuple[Answer, int]:
    """Of an answer without a stream: what is compared, and how many prompt tokens were found cached."""
    whole = msgspec.json.decode(body)
    details = whole["details"]
    choices = [{"generated_text": whole["generated_text"], **details}, *details.get("best_of_sequences", [])]
    return msgspec.convert(choices, Answer), details["timings"]["cached_tokens"]


def check_error(body: bytes) -> str:
    """The sentence of an error in the documented shape; raises `Wrong` for any other."""
    try:
        error = msgspec.json.decode(body, type=dict[str, str])
    except msgspec.DecodeError:
        raise Wrong(f"not a documented error: {body!r}") from None
    if set(error) != {"error", "error_type"}:
        raise Wrong(f"not a documented error: {body!r}")
    return error["error"]


def check_refusal(status: int, headers: dict[str, str], body: bytes) -> str:
    """The sentence of a 429 or 503; raises `Wrong` for any other status, or without `Retry-After`."""
    sentence = check_error(body)
    if status not in (429, 503):
        raise Wrong(f"status {status}: {sentence}")
    if not headers.get("retry-after", "").isdigit():
        raise Wrong(f"status {status} without Retry-After")
    return sentence
