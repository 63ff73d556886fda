"""HTTP/1.1 by uvicorn and httptools, with the bounds that they lack: on headers, and on requests sent ahead.

An ASGI application sees a request only when its headers are whole, so this must be decided below it. Knows no
route; what it refuses has the documented shape, is counted and logged, and no request gets two answers.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.connection import Connection, access_log
from server.errors import ApiError, BadRequest, HeadersTooLarge, RequestTimeout
from server.metrics import OTHER_ROUTE, Metrics
from server.parser import RequestParser
from server.settings import Settings

# The request line counts, too. The exact limit of the headers alone is the middleware's.
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_PIPELINED: Final = 64  # requests of one connection that wait for the answer to an earlier one


class BoundedProtocol(Connection):
    """One connection. uvicorn makes them, so the bounds are the class's: see `bounded_protocol`."""

    header_timeout_s: ClassVar[float]

    _deadline: asyncio.TimerHandle | None = None  # runs while the client owes bytes and awaits no answer
    _is_body = False  # between a request's headers and its end: its body, and the trailers
    _num_pending_bytes = 0  # received since the last of: whole headers, a piece of a body, a whole request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Await the first headers."""
        super().connection_made(transport)
        self.parser: RequestParser = RequestParser(self)  # type: ignore[assignment]  # has all that uvicorn uses
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a head, or trailers, too long before they are whole.

        The parser keeps what it has of a header until the header is whole, so only bytes received bound what
        it holds. `data` that completes something is not counted: where in it the next head begins is unknown.
        """
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self.is_closing():
            return
        if self._num_pending_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadersTooLarge(f"the headers are over {MAX_HEAD_BYTES} bytes"))
        elif self._deadline is None and not self._is_answering():
            self._start_deadline()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, which must not pass for one."""
        if not self._is_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the application have the request; what is raised here is refused as no HTTP."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests ahead of their answers")
        was_paused = self.flow.read_paused  # by a body that nobody takes yet
        super().on_headers_complete()
        if not was_paused:  # uvicorn reads on only after the answer, and would not see the client leave
            self.flow.resume_reading()
        if self.expect_100_continue:
            # Refused early, some clients never send this body: their next request would pass for it.
            self.cycle.keep_alive = False
        self._is_body = True
        self._num_pending_bytes = 0
        self._stop_deadline()

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of the body; uvicorn drops it if the request was answered without it."""
        self._num_pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Await the next request."""
        super().on_message_complete()
        self._is_body = False
        self._num_pending_bytes = 0
        self._stop_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline, and the parser, which holds us."""
        self._stop_deadline()
        self.parser.close()
        super().connection_lost(exc)

    def close(self) -> None:
        """Forget the deadline: nothing more is read."""
        self._stop_deadline()
        super().close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(BadRequest("the request is not valid HTTP/1.1"))

    def _is_answering(self) -> bool:
        # The newest cycle tells: older ones are answered before it.
        return self.cycle is not None and not self.cycle.response_complete

    def _can_answer(self) -> bool:
        # Whether what we write now would be one whole answer, to a request that has none.
        if self.cycle is None:
            return True
        if self.cycle.response_complete:
            return not self._is_body
        return not (self.pipeline or self.cycle.response_started)

    def _may_send_more(self) -> bool:
        return self._is_body or self._num_pending_bytes > 0 or bool(self.pipeline) or self.flow.read_paused

    def _waits_for_client(self) -> bool:
        owes_body = self._is_body and not self.pipeline
        return owes_body or self.flow.write_paused or not self._is_answering()

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.header_timeout_s, self._time_out)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        if self._num_pending_bytes:
            self._refuse(RequestTimeout(f"the headers were not whole within {self.header_timeout_s:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self._stop_deadline()
        if self.is_closing():
            return
        if not self._can_answer():
            self.drop("broken_request")
            return
        if self._is_answering():
            self.cycle.disconnected = True  # the application's own answer would be a second one
            self.cycle.message_event.set()
        body, request_id = json.dumps(error.body()).encode(), secrets.token_hex(16)
        self.transport.write(
            STATUS_LINE[error.status] + b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (len(body), request_id.encode(), body)
        )
        self.close()
        self.metrics.failed(error.error_type)
        self.metrics.answered(OTHER_ROUTE, error.status)
        fields = {"request_id": request_id, "route": OTHER_ROUTE, "status": error.status}
        access_log.info("%s %d %s", OTHER_ROUTE, error.status, request_id, extra=fields)


def bounded_protocol(settings: Settings, metrics: Metrics, max_connections: int) -> type[BoundedProtocol]:
    """Return the class to give to uvicorn as `http`; `max_connections` as the system affords."""
    bounds = {
        "header_timeout_s": settings.header_timeout_s,
        "write_timeout_s": settings.write_timeout_s,
        "max_connections": max_connections,
        "metrics": metrics,
    }
    return type("BoundedProtocol", (BoundedProtocol,), bounds)
