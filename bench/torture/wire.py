"""HTTP/1.1 as a client sees it, down to the chunks: an answer that is cut short is never taken for whole.

No library does this, since none lets a client be rude. Knows nothing of what an answer should say.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit


class Cut(Exception):
    """The connection ended inside an answer, or before it, or the bytes are not HTTP."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers, their names in lower case."""

    status: int
    headers: dict[str, str]


class Connection:
    """One connection to a server. Every way of ending it is here."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> Self:
        """Connect to `http://host:port`."""
        url = urlsplit(address)
        return cls(*await asyncio.open_connection(url.hostname, url.port))

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._writer.write(data)

    async def head(self) -> Head:
        """The next answer's."""
        try:
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            return Head(int(first.split()[1]), headers)
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
            raise Cut(f"no answer: {error!r}") from None

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """The body as it comes."""
        try:
            if head.headers.get("transfer-encoding") != "chunked":
                yield await self._reader.readexactly(int(head.headers["content-length"]))
                return
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        except (OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            raise Cut(f"a body was cut: {error!r}") from None

    async def body(self, head: Head) -> bytes:
        """The whole of it."""
        return b"".join([piece async for piece in self.pieces(head)])

    async def wait_closed_by_server(self) -> bytes:
        """What came until the server closed the connection."""
        said = b""
        with contextlib.suppress(OSError):  # a reset: it did not want what we had sent meanwhile
            while part := await self._reader.read(1 << 16):
                said += part
        return said

    def stop_reading(self) -> None:
        """Be there, and take nothing more."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it

    def close(self) -> None:
        """FIN."""
        self._writer.close()

    def reset(self) -> None:
        """RST: what a crashed client's system sends."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def request(method: str, path: str, body: bytes | None = None) -> bytes:
    """A whole request."""
    head = f"{method} {path} HTTP/1.1\r\nhost: torture\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def fetch(address: str, path: str, body: bytes | None = None) -> tuple[Head, bytes]:
    """One request and its answer on a connection of their own."""
    connection = await Connection.open(address)
    try:
        connection.send(request("GET" if body is None else "POST", path, body))
        head = await connection.head()
        return head, await connection.body(head)
    finally:
        connection.close()


async def metrics(address: str) -> dict[str, float]:
    """Every series of the server, with its labels as they are written."""
    _, page = await fetch(address, "/metrics")
    lines = (line.rpartition(" ") for line in page.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}
