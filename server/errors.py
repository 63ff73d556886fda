"""What the server answers when it does not do what was asked: one HTTP status for each leaf.

    ApiError
    ├── BadRequest              400  bad_request             not JSON, or not to every reader the same
    ├── Unauthorized            401  unauthorized            an API key is set, and none of them was given
    ├── NotFound                404  not_found
    ├── MethodNotAllowed        405  method_not_allowed      with Allow
    ├── RequestTimeout          408  request_timeout         headers or body not whole in time
    ├── TooLarge                413  too_large               the body
    ├── UnsupportedMediaType    415  unsupported_media_type  a body that is not application/json
    ├── ValidationFailed        422  validation              a field, its value, its limit
    ├── GenerationFailed        424  generation              this request failed while generating
    ├── Overloaded              429  overloaded              the queue is full; with Retry-After
    ├── HeadersTooLarge         431  headers_too_large
    ├── Internal                500  internal                a bug; only the log has the traceback
    └── Unavailable             503  unavailable             loading, draining, engine down; with Retry-After

Knows nothing of routes. A sentence names the field, the value and the limit; never a path, a class or a
traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import ClassVar

from starlette.responses import JSONResponse

MAX_SHOWN_CHARS = 100


class ApiError(Exception):
    """The root. `str(error)` is the sentence that the client reads."""

    status: ClassVar[int]
    error_type: ClassVar[str]

    def __init__(self, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, str]:
        """Return the documented shape."""
        return {"error": str(self), "error_type": self.error_type}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


class BadRequest(ApiError):
    """The body is not JSON, or is JSON that two readers could read differently."""

    status = 400
    error_type = "bad_request"


class Unauthorized(ApiError):
    """No valid API key was given."""

    status = 401
    error_type = "unauthorized"

    def __init__(self) -> None:
        super().__init__(
            "a valid API key is needed, as `Authorization: Bearer <key>`", {"WWW-Authenticate": "Bearer"}
        )


class NotFound(ApiError):
    """No such route."""

    status = 404
    error_type = "not_found"


class MethodNotAllowed(ApiError):
    """The route exists, for other methods."""

    status = 405
    error_type = "method_not_allowed"


class RequestTimeout(ApiError):
    """The request did not arrive in time. The connection closes: where its next request begins is unknown."""

    status = 408
    error_type = "request_timeout"

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, {"Connection": "close"})


class TooLarge(ApiError):
    """The body is over the limit."""

    status = 413
    error_type = "too_large"


class UnsupportedMediaType(ApiError):
    """The body does not say that it is JSON, or says that it is compressed."""

    status = 415
    error_type = "unsupported_media_type"


class ValidationFailed(ApiError):
    """A rule for a field is broken."""

    status = 422
    error_type = "validation"


class GenerationFailed(ApiError):
    """The request was accepted, and failed while generating."""

    status = 424
    error_type = "generation"


class HeadersTooLarge(ApiError):
    """Too many headers, or too long."""

    status = 431
    error_type = "headers_too_large"


class Internal(ApiError):
    """A bug of ours."""

    status = 500
    error_type = "internal"

    def __init__(self) -> None:
        super().__init__("internal error")


class _Retryable(ApiError):
    """What may pass by itself, and the time after which it is worth asking again, in seconds."""

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        super().__init__(sentence, {"Retry-After": str(max(1, math.ceil(retry_after_s)))})


class Overloaded(_Retryable):
    """The queue is full."""

    status = 429
    error_type = "overloaded"


class Unavailable(_Retryable):
    """The engine cannot take requests now."""

    status = 503
    error_type = "unavailable"

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        super().__init__(sentence, retry_after_s)
        self.headers["Connection"] = "close"  # the next try should find a server that is not stopping


ERRORS: tuple[type[ApiError], ...] = (
    BadRequest, Unauthorized, NotFound, MethodNotAllowed, RequestTimeout, TooLarge, UnsupportedMediaType,
    ValidationFailed, GenerationFailed, HeadersTooLarge, Internal, Overloaded, Unavailable,
)  # fmt: skip


CLIENT_LEFT = 499  # never on the wire: what the log and the counter call an answer nobody waited for


def shown(value: object) -> str:
    """Return `value` as a sentence may show it: escaped JSON, cut at 100 characters; containers by size."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * MAX_SHOWN_CHARS:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value[:MAX_SHOWN_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
