"""What every request passes, before any route: a name, a line in the log, a count, and the door.

Plain ASGI, so that a stream passes through as it comes. Knows no route and reads no body.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_LEFT, ApiError, HeadersTooLarge, Internal, Unauthorized
from server.metrics import OTHER_ROUTE, Metrics

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_PIECE_BYTES: Final = 16 * 1024
OPEN_PATHS: Final = frozenset({"/health", "/health/live", "/health/ready", "/ping"})

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")

access_log = logging.getLogger("verbatim.access")
error_log = logging.getLogger("verbatim.error")


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


class Observe:
    """Names each request, counts and logs its answer, and turns a bug into a plain 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the route's template is known only afterwards."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        given = _values(scope, b"x-request-id")
        is_valid = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        request_id = given[0] if is_valid else secrets.token_hex(16).encode()
        started_s = time.monotonic()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ApiError as error:
            self._metrics.failed(error.error_type)
            await error.response()(scope, receive, send_named)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception:
            if status:  # the answer has begun: only a closed connection still tells the truth
                raise
            error_log.exception("internal error", extra={"request_id": request_id.decode()})
            self._metrics.failed(Internal.error_type)
            await Internal().response()(scope, receive, send_named)
        finally:
            self._record(scope, status or CLIENT_LEFT, request_id.decode(), time.monotonic() - started_s)
        return None

    def _record(self, scope: Scope, status: int, request_id: str, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", OTHER_ROUTE)
        self._metrics.answered(route, status)
        fields = {
            "request_id": request_id,
            "route": route,
            "status": status,
            "took_ms": round(took_s * 1000, 1),
        }
        is_probe = route in OPEN_PATHS and status == 200  # every few seconds, for ever: no news
        level = logging.DEBUG if is_probe else logging.INFO
        access_log.log(level, "%s %d %.1f ms %s", route, status, took_s * 1000, request_id, extra=fields)


class Gate:
    """Refuses, before anything is read: too many headers, and those without a key where one is set."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or raise the `ApiError` that says why not."""
        if scope["type"] == "http":
            self._check_headers(scope["headers"])
            if self._keys and scope["path"] not in OPEN_PATHS:
                tenant = self._check_key(_values(scope, b"authorization"))
                scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if len(headers) > MAX_HEADERS:
            raise HeadersTooLarge(f"the request has {len(headers)} headers, at most {MAX_HEADERS} are taken")
        num_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
        if num_bytes > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"the headers are {num_bytes} bytes, at most {MAX_HEADER_BYTES} are taken")

    def _check_key(self, given: Sequence[bytes]) -> int:
        """Return the number of the key that was given: whose requests these are."""
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        matches = [
            hmac.compare_digest(key.strip(), known) for known in self._keys
        ]  # all of them: constant time
        if scheme.lower() != b"bearer" or not any(matches):
            raise Unauthorized
        return matches.index(True)


class InPieces:
    """Sends a long answer piece by piece, each when the client has taken the one before.

    The server below holds what it is handed until it is sent: handed a whole answer, it would hold all of it
    for a client that reads nothing, and could not tell one that reads slowly from one that does not read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= MAX_PIECE_BYTES:
                return await send(message)
            last = (len(body) - 1) // MAX_PIECE_BYTES * MAX_PIECE_BYTES
            for start in range(0, last, MAX_PIECE_BYTES):
                piece = body[start : start + MAX_PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            return await send({**message, "body": body[last:]})

        await self._app(scope, receive, send_pieces)
