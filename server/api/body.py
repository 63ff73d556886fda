"""From a request's bytes to a validated body, or to the sentence that says what is wrong with it.

FastAPI's own reading would take duplicate keys and NaN, and answer in another shape. Knows no route.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable
from typing import Final, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.api.json_body import JsonError, parse_json
from server.api.schemas import Body, GenerateBody, GenerateParameters
from server.errors import BadRequest, RequestTimeout, TooLarge, UnsupportedMediaType, ValidationFailed, shown
from server.settings import Settings

B = TypeVar("B", bound=Body)
T = TypeVar("T")

# Parsing, validating and encoding this much takes a millisecond or two; more would hold up the other streams.
_MAX_INLINE_BYTES: Final = 4096
_MAX_NAMES: Final = 1000  # in one object


async def read_body(request: Request, settings: Settings) -> bytes:
    """Return the whole body, held in memory only up to the limit.

    Raises `UnsupportedMediaType`, `TooLarge` or `RequestTimeout`.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"the content type is {shown(media_type)}, it must be application/json")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"the content encoding is {shown(coding)}, no compressed body is read")
    limit = settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise TooLarge(f"the body is {int(declared[:20])} bytes, at most {limit} are taken")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"the body is over {limit} bytes, at most that many are taken")
    except TimeoutError:
        raise RequestTimeout(f"the body was not whole within {settings.body_timeout_s:g} s") from None
    return bytes(body)


async def off_loop(
    num_bytes: int, work: Callable[[], T], threads: CapacityLimiter, *, is_tame: bool = True
) -> T:
    """Do `work` on a body: at once if it is short, else in a thread, so that the streams go on.

    `threads` bounds how many run at a time; the other bodies wait their turn. `is_tame`: whether a short
    body's work is short, too.
    """
    if is_tame and num_bytes <= _MAX_INLINE_BYTES:
        return work()
    return await to_thread.run_sync(work, limiter=threads)


def parse_body(model: type[B], raw: bytes) -> B:
    """Return `raw` as a `model`; raises `BadRequest` or `ValidationFailed`."""
    try:
        value = parse_json(raw)
    except JsonError as error:
        raise BadRequest(str(error)) from None
    if not isinstance(value, dict):
        raise ValidationFailed(f"the body is {shown(value)}, it must be an object")
    _refuse_many_names(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Unknown names first: a misspelt field explains a missing one.
        details = error.errors(include_url=False)
        first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
        raise ValidationFailed(_sentence(model, first)) from None


def _refuse_many_names(value: object, num_levels: int = 3) -> None:
    # An error for each of a hundred thousand unknown names would take a second to collect.
    if isinstance(value, dict):
        if len(value) > _MAX_NAMES:
            raise ValidationFailed(f"an object has {len(value)} fields, at most {_MAX_NAMES} are read")
        if num_levels > 1:
            for child in value.values():
                _refuse_many_names(child, num_levels - 1)


def _sentence(model: type[Body], detail: ErrorDetails) -> str:
    kind, where, message = detail["type"], detail["loc"], detail["msg"]
    if kind == "extra_forbidden":
        return _unknown_field(model, where)
    if kind == "missing":
        return f"{_path(where)} is required"
    if kind == "value_error":
        reason = str(detail["ctx"]["error"])
        return f"{_path(where)} is {shown(detail['input'])}: {reason}" if reason.startswith("it ") else reason
    if kind == "string_too_long":
        limit = detail["ctx"]["max_length"]
        return f"{_path(where)} has {len(detail['input'])} characters, at most {limit} are taken"
    if kind in ("model_type", "model_attributes_type"):
        message = "it should be an object"
    elif kind == "finite_number":
        message = "it should be a finite number"
    elif kind == "string_pattern_mismatch":
        message = "it should be a token id in decimal digits"
    message = re.sub(r"^\w+ should", "it must", message, count=1).replace(" after validation", "")
    return f"{_path(where)} is {shown(detail['input'])}: {message}"


def _path(where: tuple[int | str, ...]) -> str:
    # The first two names are ours; what lies deeper may be a client's key, and is escaped.
    ours, theirs = where[:2], [part for part in where[2:] if part != "[key]"]
    names = ".".join(part for part in ours if isinstance(part, str))
    deeper = [part for part in ours if isinstance(part, int)] + theirs
    return names + "".join(f"[{shown(part)}]" for part in deeper)


def _unknown_field(model: type[Body], where: tuple[int | str, ...]) -> str:
    *parents, last = where
    name = str(last)
    if model is GenerateBody and parents == ["parameters"]:
        model = GenerateParameters
    elif model is GenerateBody and not parents and name in GenerateParameters.model_fields:
        return f"{name} belongs under parameters, not at the top level"
    elif parents:
        return f"unknown field {shown(name)} in {_path(tuple(parents))}"
    nearest = difflib.get_close_matches(name[:64], model.model_fields, n=1, cutoff=0.0)
    place = f" in {parents[0]}" if parents else ""
    return f"unknown field {shown(name)}{place}; the nearest known one is {nearest[0]}"
