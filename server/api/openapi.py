"""What the OpenAPI document says that FastAPI cannot see: bodies that we parse, errors, streams, keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from server.api.answers import ErrorAnswer, StreamEvent
from server.api.schemas import Body, DetokenizeBody, GenerateBody, TokenizeBody
from server.errors import (
    ApiError,
    BadRequest,
    GenerationFailed,
    HeadersTooLarge,
    Internal,
    Overloaded,
    RequestTimeout,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    ValidationFailed,
)
from server.middleware import OPEN_PATHS

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[Body], ...] = (GenerateBody, TokenizeBody, DetokenizeBody)

EVERYWHERE = (Unauthorized, HeadersTooLarge, Internal)
WITH_BODY = (
    *EVERYWHERE,
    BadRequest,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
    ValidationFailed,
    Unavailable,
)
WITH_ENGINE = (*WITH_BODY, GenerationFailed, Overloaded)


def refusals(kinds: tuple[type[ApiError], ...]) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses` for these errors."""
    return {kind.status: {"model": ErrorAnswer, "description": kind.error_type} for kind in kinds}


def takes(model: type[Body]) -> dict[str, Any]:
    """Return a route's `openapi_extra` for a body of this shape."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def stream_content() -> dict[str, Any]:
    """Return the content of an answer that streams; the schema is that of each event's `data`."""
    events = [{"$ref": _REF.format(model=model.__name__)} for model in (StreamEvent, ErrorAnswer)]
    return {"text/event-stream": {"schema": {"anyOf": events}}}


def install(app: FastAPI, *, needs_key: bool) -> None:
    """Let `app` publish the whole document. `needs_key`: whether every route but the probes needs a key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            wanted = [
                (body, "validation" if body in _BODIES else "serialization")
                for body in (*_BODIES, StreamEvent)
            ]
            _, extra = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
            schema.setdefault("components", {}).setdefault("schemas", {}).update(extra["$defs"])
            if needs_key:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"key": []}]
                for path in OPEN_PATHS:
                    schema["paths"][path]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way that FastAPI documents
