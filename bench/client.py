"""The client's side of a measurement: plain sockets, read no more than it takes to tell events apart.

Every function here is meant for a process of its own. Knows nothing of what the answers are compared with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import uvloop

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

NUM_HEALTH_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """What became of streams that started together. Times from the start of all, in seconds."""

    took_s: float  # until the last token
    first_token_s: list[float]  # of each stream
    token_ids: list[list[int]]  # of each stream


def stream(address: str, prompts: list[list[int]], num_new_tokens: int) -> Run:
    """One stream for each prompt, greedy, end tokens ignored; connections open before the clock starts."""

    async def run() -> Run:
        connections = [await _connect(address) for _ in prompts]
        began_s = time.perf_counter()
        streams = await asyncio.gather(
            *(_stream(c, p, num_new_tokens) for c, p in zip(connections, prompts, strict=True))
        )
        took_s = time.perf_counter() - began_s
        for _, writer in connections:
            writer.close()
        return Run(
            took_s,
            [first_s - began_s for first_s, _ in streams],
            [[msgspec.json.decode(data)["token"]["id"] for data in events] for _, events in streams],
        )

    return uvloop.run(run())


def health_per_s(address: str, duration_s: float) -> float:
    """Requests per second of GET /health/ready, one after another on each of a few connections."""

    async def probe(connection: Connection, deadline_s: float) -> int:
        reader, writer = connection
        num_answers = 0
        while time.perf_counter() < deadline_s:
            writer.write(b"GET /health/ready HTTP/1.1\r\nhost: bench\r\n\r\n")
            await reader.readuntil(b'{"status":"ready"}')
            num_answers += 1
        writer.close()
        return num_answers

    async def run() -> float:
        connections = [await _connect(address) for _ in range(NUM_HEALTH_CONNECTIONS)]
        began_s = time.perf_counter()
        counts = await asyncio.gather(*(probe(c, began_s + duration_s) for c in connections))
        return sum(counts) / (time.perf_counter() - began_s)

    return uvloop.run(run())


async def _connect(address: str) -> Connection:
    url = urlsplit(address)
    return await asyncio.open_connection(url.hostname, url.port)


async def _stream(
    connection: Connection, prompt: list[int], num_new_tokens: int
) -> tuple[float, list[bytes]]:
    """When the first event came, and the data of every event."""
    reader, writer = connection
    parameters = {"max_new_tokens": num_new_tokens, "ignore_eos": True}
    body = msgspec.json.encode({"inputs": prompt, "parameters": parameters})
    writer.write(
        b"POST /generate_stream HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode())
    first_s = 0.0
    events: list[bytes] = []
    async for data in _events(reader):
        first_s = first_s or time.perf_counter()
        events.append(data)
        if b'"generated_text":null' not in data:  # the last event has the text
            break
    return first_s, events


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        _, separator, data = (await reader.readuntil(b"\n\n")).rpartition(b"\ndata: ")
        if separator:  # else a comment
            yield data
