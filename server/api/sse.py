"""Server-sent events as bytes, and the pulse that keeps a silent stream open. Knows nothing of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, TypeVar

import msgspec
from starlette.responses import StreamingResponse

from server.middleware import MAX_PIECE_BYTES

T = TypeVar("T")

COMMENT: Final = b":\n\n"
_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def encode(data: object, event_id: int | None = None) -> bytes:
    """Return one event. Unicode's line separators are escaped: some readers split lines at them."""
    payload = msgspec.json.encode(data)
    if not payload.isascii():
        for raw, escaped in (
            (b"\xc2\x85", b"\\u0085"),
            (b"\xe2\x80\xa8", b"\\u2028"),
            (b"\xe2\x80\xa9", b"\\u2029"),
        ):
            payload = payload.replace(raw, escaped)
    return b"data: %b\n\n" % payload if event_id is None else b"id: %d\ndata: %b\n\n" % (event_id, payload)


def joined(events: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the events, as many together as stay within `MAX_PIECE_BYTES`; a longer one comes alone.

    One look after a pause may bring thousands of tokens. Joined at once, they would all be encoded and held
    before the client has taken the first; this takes an event from `events` only when it is to be sent.
    """
    held: list[bytes] = []
    num_bytes = 0
    for event in events:
        if held and num_bytes + len(event) > MAX_PIECE_BYTES:
            yield b"".join(held)
            held, num_bytes = [], 0
        held.append(event)
        num_bytes += len(event)
    if held:
        yield b"".join(held)


async def with_pulse(source: AsyncIterator[T], silence_s: float) -> AsyncIterator[T | None]:
    """Yield what `source` yields, and None after each `silence_s` without anything.

    `source.__anext__` is cancelled at the pulse and called again: it must lose nothing by that.
    """
    while True:
        try:
            async with asyncio.timeout(silence_s):
                item = await anext(source)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return
        else:
            yield item


def response(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the streaming answer around `events`."""
    return StreamingResponse(events, media_type="text/event-stream; charset=utf-8", headers=_HEADERS)
