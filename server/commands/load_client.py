"""The client's side of a measurement: plain sockets, read no more than it takes to tell events apart.

Meant for a process that is not the server. Knows nothing of what the answers are compared with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec
import uvloop

from server.engine.load import Load, Run

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

NUM_HEALTH_CONNECTIONS = 8


def stream(address: str, load: Load, api_key: str | None = None) -> Run:
    """Do a load through the server's socket; connections open before the clock starts."""

    async def run() -> Run:
        connections = [await _connect(address) for _ in load.prompts]
        began_s = time.perf_counter()
        streams = await asyncio.gather(
            *(
                _stream(connection, prompt, load.num_new_tokens, api_key)
                for connection, prompt in zip(connections, load.prompts, strict=True)
            )
        )
        took_s = time.perf_counter() - began_s
        for _, writer in connections:
            writer.close()
        return Run(
            took_s=took_s,
            first_token_s=[first_s - began_s for first_s, _ in streams],
            token_ids=[
                [msgspec.json.decode(data)["token"]["id"] for data in events] for _, events in streams
            ],
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
    connection: Connection, prompt: list[int], num_new_tokens: int, api_key: str | None
) -> tuple[float, list[bytes]]:
    """When the first event came, and the data of every event."""
    reader, writer = connection
    parameters = {"max_new_tokens": num_new_tokens, "ignore_eos": True}
    key = b"" if api_key is None else b"authorization: Bearer %b\r\n" % api_key.encode()
    body = msgspec.json.encode({"inputs": prompt, "parameters": parameters})
    writer.write(
        b"POST /generate_stream HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"%bcontent-length: %d\r\n\r\n%b" % (key, len(body), body)
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
