"""Clients of every kind: who asks and reads, who leaves, who reads slowly, sends slowly, or sends rubbish.

Each is one coroutine on real sockets. Decides nothing about when or how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import httpx

from bench.torture.check import (
    Answer,
    End,
    Outcome,
    StreamCheck,
    Wrong,
    check_error,
    check_refusal,
    read_answer,
)
from bench.torture.wire import Connection, Cut, fetch, request
from bench.torture.wishes import Wish
from tests.server import raw_http
from tests.server.schema_cases import Document, Request

Manner = Literal["RST", "FIN", "half-open"]
MANNERS: tuple[Manner, ...] = ("RST", "FIN", "half-open")

SLOW_RECEIVE_BUFFER = 2048
PROBE_INTERVAL_S = 0.1


async def ask(
    address: str,
    wish: Wish,
    expected: Answer | None,
    outcome: Outcome,
    *,
    is_stream: bool = True,
    leave_after_s: float | None = None,
    manner: Manner = "FIN",
) -> Connection | None:
    """Ask and check the answer; `outcome` always tells where it stands. Returns what was left half-open."""
    try:
        connection = await Connection.open(address)
    except OSError as error:
        outcome.settle(End.LOST, f"no connection: {error}")
        return None
    leaving = asyncio.timeout(leave_after_s)
    try:
        async with leaving:
            await _ask(connection, wish, expected, outcome, is_stream=is_stream and wish.can_stream)
    except (Wrong, Cut, OSError) as error:  # among them the TimeoutError of who leaves
        outcome.settle(End.LEFT if leaving.expired() else End.LOST, str(error) or repr(error))
    finally:
        if leaving.expired() and manner == "half-open":
            connection.stop_reading()
        elif leaving.expired() and manner == "RST":
            connection.reset()
        else:
            connection.close()
    return connection if leaving.expired() and manner == "half-open" else None


async def _ask(
    connection: Connection, wish: Wish, expected: Answer | None, outcome: Outcome, *, is_stream: bool
) -> None:
    outcome.sent_s = time.perf_counter()
    connection.send(request("POST", "/generate", wish.body(is_stream=is_stream)))
    head = await connection.head()
    outcome.head_s = time.perf_counter()
    outcome.status = head.status
    if head.status == 200 and is_stream:
        check = StreamCheck(expected[0] if expected else None, outcome)
        async for piece in connection.pieces(head):
            check.take(piece)
        check.finish()
        return
    body = await connection.body(head)
    if head.status == 200:
        answer, outcome.cached_tokens = read_answer(body)
        if expected is not None and answer != expected:
            raise Wrong("the answer is not that of the request alone")
        outcome.num_tokens = sum(len(choice.tokens) for choice in answer)
        outcome.settle(End.WHOLE)
    elif head.status in (424, 500):
        outcome.settle(End.FAILED, check_error(body))
    else:
        outcome.settle(End.REFUSED, check_refusal(head.status, head.headers, body))


# ---- the rude ---------------------------------------------------------------------------------------------


async def read_slowly(address: str, wish: Wish, interval_s: float = 1.0) -> None:
    """Ask for a stream, then take one byte each `interval_s`, through a small buffer, until it ends.

    That may be long after the server gave it up: a client that does not read does not hear of it.
    """
    url = urlsplit(address)
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BUFFER)
        connection.setblocking(False)
        await loop.sock_connect(connection, (url.hostname, url.port))
        await loop.sock_sendall(connection, request("POST", "/generate", wish.body(is_stream=True)))
        with contextlib.suppress(OSError):
            while await loop.sock_recv(connection, 1):
                await asyncio.sleep(interval_s)


async def send_slowly(
    address: str, data: bytes, interval_s: float = 1.0, at_once: int = 0
) -> tuple[float, bytes]:
    """Send a byte each `interval_s`, after some at once: when the server closed, and what it said."""
    began_s = time.perf_counter()
    connection = await Connection.open(address)
    closing = asyncio.create_task(connection.wait_closed_by_server())
    try:
        connection.send(data[:at_once])
        for place in range(at_once, len(data)):
            connection.send(data[place : place + 1])
            done, _ = await asyncio.wait([closing], timeout=interval_s)
            if done:
                break
        said = await closing
    finally:
        closing.cancel()
        connection.close()
    return time.perf_counter() - began_s, said


async def idle(address: str) -> tuple[float, bytes]:
    """Connect and say nothing: after how long the server closed."""
    return await send_slowly(address, b"")


async def send_rubbish(address: str, seed: int, until_s: float) -> list[str]:
    """What is nearly HTTP, a few at a time, until then; the answers that should not have been."""
    url = urlsplit(address)
    rubbish, bad = raw_http.cases(seed, 10**9), []
    while time.perf_counter() < until_s:
        some = itertools.islice(rubbish, 16)
        tally = await raw_http.attack((str(url.hostname), int(url.port or 0)), some, 8, quiet_s=0.5)
        # A request may be whole by chance, and then be refused for a good reason.
        bad += [f"{case}: {answer[:100]!r}" for case, answer in tally.wrong if b" 503 " not in answer]
    return bad


async def send_drawn(
    address: str, document: Document, cases: list[Request], until_s: float
) -> tuple[int, list[str]]:
    """Send what was drawn from the OpenAPI document, right and wrong, a few at a time, until then.

    How many, and which answers should not have been.
    """
    endless, bad = itertools.cycle(cases), []
    num_sent = 0

    async def send(http: httpx.AsyncClient) -> None:
        nonlocal num_sent
        while time.perf_counter() < until_s:
            case = next(endless)
            try:
                document.check(case, await http.send(case.build(http)), is_stormy=True)
            except (AssertionError, ValueError, httpx.HTTPError) as error:
                bad.append(f"{case}: {error!r}"[:300])
            num_sent += 1

    async with httpx.AsyncClient(base_url=address, timeout=120.0) as http:
        await asyncio.gather(*(send(http) for _ in range(4)))
    return num_sent, bad


# ---- the probes -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Probes:
    """What the health probes answered."""

    num_refused: dict[str, int] = field(default_factory=lambda: {"/health/live": 0, "/health/ready": 0})
    num_silent: int = 0  # no answer within a second
    answer_s: array[float] = field(default_factory=lambda: array("d"))


@contextlib.asynccontextmanager
async def probing(address: str) -> AsyncIterator[Probes]:
    """Probe all the while, as a load balancer would."""
    probes = Probes()

    async def probe() -> None:
        while True:
            for path in probes.num_refused:
                began_s = time.perf_counter()
                try:
                    async with asyncio.timeout(1.0):
                        probes.num_refused[path] += (await fetch(address, path))[0].status != 200
                except (OSError, Cut):
                    probes.num_silent += 1
                probes.answer_s.append(time.perf_counter() - began_s)
            await asyncio.sleep(PROBE_INTERVAL_S)

    task = asyncio.create_task(probe())
    try:
        yield probes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
