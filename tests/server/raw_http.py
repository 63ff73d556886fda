"""A fuzzer for what is below the application: bytes that are nearly HTTP, in pieces, over raw sockets.

Seeded: case N of a seed is always the same. Judges answers by their statuses alone; whether the server lives
on is for the caller to see.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

BODY = b'{"inputs": "abc", "parameters": {"max_new_tokens": 2}}'
JSON = b"host: a\r\ncontent-type: application/json\r\n"
SIZED = b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

SEEDS = (
    b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n",
    b"HEAD /health/live HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n",
    b"GET /metrics?a=%41&b HTTP/1.0\r\n\r\n",
    b"POST /generate HTTP/1.1\r\n" + JSON + SIZED,
    b"POST /generate HTTP/1.1\r\n" + JSON + CHUNKED,
    b"POST /generate_stream HTTP/1.1\r\n" + JSON + SIZED,
    b"POST / HTTP/1.1\r\nexpect: 100-continue\r\n" + JSON + SIZED,
    b"POST /tokenize HTTP/1.1\r\nconnection: close\r\n" + JSON + SIZED,
    b"POST /generate HTTP/1.1\r\n" + JSON + SIZED + b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n",
)
TOKENS = (
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"%00",
        b"\xe2\x80\xa8",
        b"\x7f",
    ),
    *(b"content-length: -1\r\n", b"content-length: 5\r\n", b"content-length: 99999999999999999999\r\n"),
    *(b"content-length: 0x10\r\n", b"content-length: 5, 6\r\n", b"transfer-encoding: chunked\r\n"),
    *(b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: \x0bchunked\r\n", b"te: trailers\r\n"),
    *(b"connection: close\r\n", b"connection: upgrade\r\nupgrade: websocket\r\n", b"upgrade: h2c\r\n"),
    *(
        b"expect: 100-continue\r\n",
        b"expect: 200-ok\r\n",
        b" folded: line\r\n",
        b"x: " + b"y" * 40_000 + b"\r\n",
    ),
    *(b"x: y\r\n" * 101, b"host: b\r\nhost: c\r\n", b"x-request-id: a\r\nx-request-id: b\r\n", b"HTTP/9.9"),
    *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET http://b/ HTTP/1.1\r\n"),
    *(b"OPTIONS * HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"/../../etc/passwd", b"//", b"?", b"#"),
    *(b"ffffffffffffffff\r\n", b"-1\r\n", b"0\r\nx: y\r\n\r\n", b"5;a=b\r\n", b"0" * 5000 + b"\r\n"),
)

Mutation = Callable[[bytes, random.Random], bytes]


def _cut(data: bytes, rng: random.Random) -> tuple[int, int]:
    first, last = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return first, min(last, first + 64)


def _flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(max(1, len(data)))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _delete(data: bytes, rng: random.Random) -> bytes:
    first, last = _cut(data, rng)
    return data[:first] + data[last:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    first, last = _cut(data, rng)
    return data[:first] + data[first:last] * rng.choice((2, 3, 50)) + data[last:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(TOKENS) + data[place:]


def _insert_line(data: bytes, rng: random.Random) -> bytes:
    place = rng.choice([match.end() for match in re.finditer(rb"\r\n", data)] or [0])
    return data[:place] + rng.choice(TOKENS) + data[place:]


def _splice(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice(SEEDS)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _bare_newlines(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\n\r", b"\r\r\n")), rng.choice((1, -1)))


def _noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 400))


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _flip, _delete, _repeat, _insert, _insert_line, _insert_line, _splice, _truncate, _bare_newlines,
    _noise,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """What one client sends, and whether it ends with a reset."""

    pieces: tuple[bytes, ...]
    resets: bool


def cases(seed: int, num_cases: int) -> Iterator[Case]:
    """That many cases, the same for the same seed."""
    for number in range(num_cases):
        rng = random.Random(f"{seed}/{number}")
        data = rng.choice(SEEDS)
        for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
            data = rng.choice(MUTATIONS)(data, rng)
        ends = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
        pieces = [data[first:last] for first, last in zip([0, *ends], [*ends, len(data)], strict=True)]
        yield Case(tuple(piece for piece in pieces if piece), resets=rng.random() < 0.1)


@dataclass
class Tally:
    """What came of the cases."""

    num_cases: int = 0
    num_silent: int = 0  # no answer: the bytes were no whole request
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[Case, bytes]] = field(default_factory=list)  # a 5xx, or an answer that is no HTTP


async def attack(address: tuple[str, int], them: Iterable[Case], num_clients: int, quiet_s: float) -> Tally:
    """Send every case, so many at a time; a client hangs up after a silence of `quiet_s`."""
    tally, todo = Tally(), iter(them)

    async def client() -> None:
        for case in todo:
            answer = await _exchange(address, case, quiet_s)
            found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
            tally.num_cases += 1
            tally.num_silent += not answer
            tally.statuses.update(found)
            if any(status >= 500 for status in found) or (answer and not answer.startswith(b"HTTP/1.1 ")):
                tally.wrong.append((case, answer))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return tally


async def _exchange(address: tuple[str, int], case: Case, quiet_s: float) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        while True:
            async with asyncio.timeout(quiet_s if not answer else quiet_s / 4):
                chunk = await reader.read(65536)
            if not chunk:
                break
            answer += chunk
        if case.resets:
            writer.transport.abort()
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer
