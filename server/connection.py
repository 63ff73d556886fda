"""One client's socket: what it may hold, how long its client may keep us waiting, and how it ends.

uvicorn bounds none of these. Knows nothing of what is asked or answered: that is protocol.py, above it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import struct
from typing import ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.metrics import DropReason, Metrics

# A reader that reads nothing costs what the kernel holds for it, which counts twice what is set here, and one
# piece of an answer (server/middleware.py) in the transport: 48 KiB together.
SEND_BUFFER_BYTES: Final = 16 * 1024

LINGER_S: Final = 2.0
LINGER_BYTES: Final = 4 * 1024 * 1024  # twice the default limit of a body

_RESERVED_DESCRIPTORS: Final = 64  # for all that is no client: the worker, the log, the listener, the loop

_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time

logger = logging.getLogger("verbatim")
access_log = logging.getLogger("verbatim.access")


class Connection(HttpToolsProtocol):
    """uvicorn's connection with an end to every wait for the client.

    A client that does not take what was written for it for `write_timeout_s` is cut off. One that is gone
    without a word (a half-open connection) is found by the kernel in about the same time. Past
    `max_connections`, those that wait for their clients longest make room for the newcomer.
    """

    write_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    metrics: ClassVar[Metrics]

    _running: RequestResponseCycle | None = None  # the request that is being answered, or was last
    _turn_s = 0.0  # since when it is the client's turn, if it is
    _write_deadline: asyncio.TimerHandle | None = None  # runs while bytes wait for the client to take them
    _linger_deadline: asyncio.TimerHandle | None = None  # runs while what still comes is thrown away
    _num_lingering_bytes = 0
    _is_recorded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Bound the socket, and make room for it."""
        super().connection_made(transport)
        self.metrics.connected(1)
        self._turn_s = self.loop.time()
        # With nothing below the mark, "paused" means: the kernel is full, and we hold bytes for this client.
        transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(OSError):  # a peer may be gone already; on macOS that is an error
            self._set_options(transport.get_extra_info("socket"))
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered: uvicorn tells the newest, which may wait behind it."""
        self.metrics.connected(-1)
        if isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT:
            self._record_drop("timed_out")
        for deadline in (self._write_deadline, self._linger_deadline):
            if deadline is not None:
                deadline.cancel()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        self.cycle = self._running = None  # type: ignore[assignment]  # they hold us: free all of it at once
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Hand on, or throw away what comes after the last answer."""
        if self._linger_deadline is None:
            super().data_received(data)
            return
        self._num_lingering_bytes += len(data)
        if self._num_lingering_bytes > LINGER_BYTES:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Let the application have the request, or have it wait for those before it."""
        super().on_headers_complete()
        self.cycle.transport = _CycleTransport(self)  # type: ignore[assignment]  # all that a cycle uses
        if not self.pipeline:
            self._running = self.cycle

    def on_response_complete(self) -> None:
        """Go on to the next request; after the last one, to none."""
        if self._linger_deadline is not None:
            return
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        self._turn_s = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not take what there is: the write deadline runs."""
        super().pause_writing()
        self._turn_s = self.loop.time()
        self._write_deadline = self.loop.call_later(self.write_timeout_s, self.drop, "slow_reader")

    def resume_writing(self) -> None:
        """The client has taken all of it."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def is_closing(self) -> bool:
        """Whether nothing more will be said."""
        return self._linger_deadline is not None or self.transport.is_closing()

    def close(self) -> None:
        """End after what is written, so that the client can read it.

        A socket closed with bytes unread is reset, and the reset may overtake the answer. So the end is said
        first, and what the client still sends is thrown away, for a bounded time and up to a bounded size.
        """
        if self.is_closing():
            return
        if not self._may_send_more():
            self.transport.close()
            return
        self._linger_deadline = self.loop.call_later(LINGER_S, self.transport.close)
        self.transport.write_eof()
        self.flow.resume_reading()

    def drop(self, reason: DropReason) -> None:
        """End at once: what was written and not sent is forgotten, by us and by the kernel."""
        if self.transport.is_closing() and self._write_deadline is None:
            return
        with contextlib.suppress(OSError):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.transport.abort()
        self.connections.discard(self)  # at once, or others would have to make room, too
        self._record_drop(reason)

    def _may_send_more(self) -> bool:
        """Whether the client has a request under way, or sent one that was not read."""
        raise NotImplementedError

    def _waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send, or to take."""
        raise NotImplementedError

    def _record_drop(self, reason: DropReason) -> None:
        if self._is_recorded:  # our deadline and the kernel's may pass in one turn of the loop
            return
        self._is_recorded = True
        self.metrics.dropped(reason)
        access_log.info("dropped %s", reason, extra={"reason": reason})

    def _make_room(self) -> None:
        # A sixteenth at once: under a flood, one look at all of them for each newcomer would take all time.
        others = (cast(Connection, other) for other in self.connections if other is not self)
        waiting = [other for other in others if other._waits_for_client()]
        waiting.sort(key=lambda other: other._turn_s)
        for other in waiting[: 1 + self.max_connections // 16]:
            other.drop("too_many_connections")

    def _set_options(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        for name, value in _tcp_options(self.write_timeout_s).items():
            if (option := getattr(socket, name, None)) is not None:  # not every system has them all
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


class _CycleTransport:
    """The transport as a request's answer sees it: what it closes is closed gently."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.close = connection.close
        self.is_closing = connection.is_closing


def _tcp_options(timeout_s: float) -> dict[str, int]:
    """No waiting for more to send; and a peer that says nothing at all is given up in about this time."""
    return {
        "TCP_NODELAY": 1,  # as both event loops have it, but asyncio not for each kind of listener
        "TCP_USER_TIMEOUT": max(1000, int(timeout_s * 1000)),  # with bytes under way; in milliseconds
        "TCP_KEEPIDLE": max(1, int(timeout_s / 2)),  # with none: three probes after so much silence
        "TCP_KEEPINTVL": max(1, int(timeout_s / 6)),
        "TCP_KEEPCNT": 3,
    }


def affordable_connections(num_wanted: int) -> int:
    """Raise the limit on open files as far as this needs; return how many connections it leaves.

    Without a descriptor a connection is neither taken nor refused, a health probe's as little as another's.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_wanted + _RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            num_left = max(1, soft - _RESERVED_DESCRIPTORS)
            logger.warning("max_connections is %d, the limit on open files leaves %d", num_wanted, num_left)
            return num_left
    return num_wanted
