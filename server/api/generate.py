"""POST /generate, /generate_stream and /: TGI's routes.

A dependency holds the stream and closes it however the request ends: what can be refused is refused there,
before the first byte, and the routes only tell what comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import msgspec
from fastapi import APIRouter, Depends, Request, Response

from server.api import sse
from server.api.body import off_loop, parse_body, read_body
from server.api.front import Front, FrontDep
from server.api.generation import Generation
from server.api.openapi import WITH_ENGINE, refusals, stream_content, takes
from server.api.schemas import GenerateAnswer, GenerateBody
from server.api.translate import Job, translate
from server.engine.client import EngineOverloaded, EngineUnavailable
from server.errors import CLIENT_LEFT, GenerationFailed, Internal, Overloaded, Unavailable

router = APIRouter(tags=["generate"], responses=refusals(WITH_ENGINE))

error_log = logging.getLogger("verbatim.error")


def _prepare(raw: bytes, front: Front, always_streams: bool) -> Job:
    body = parse_body(GenerateBody, raw)
    return translate(body, front, is_stream=always_streams or bool(body.stream))


@asynccontextmanager
async def _hold(request: Request, front: Front, *, always_streams: bool) -> AsyncIterator[Generation]:
    arrived_s = time.monotonic()
    raw = await read_body(request, front.settings)
    job = await off_loop(len(raw), lambda: _prepare(raw, front, always_streams), front.body_threads)
    try:
        stream = front.client.submit(job.request)
    except EngineOverloaded as error:
        raise Overloaded(str(error), error.retry_after_s) from None
    except EngineUnavailable as error:
        raise Unavailable(str(error), error.retry_after_s) from None
    try:
        generation = Generation(job, stream, front, arrived_s)
        try:
            yield generation
        finally:
            if not generation.is_over:
                front.metrics.departed()
    finally:
        stream.close()


async def hold_generation(request: Request, front: FrontDep) -> AsyncIterator[Generation]:
    """Accept what the body asks for, and hold it until the answer is sent or the client has left."""
    async with _hold(request, front, always_streams=False) as generation:
        yield generation


async def hold_streamed(request: Request, front: FrontDep) -> AsyncIterator[Generation]:
    """Do the same, for the route that always streams."""
    async with _hold(request, front, always_streams=True) as generation:
        yield generation


async def _events(generation: Generation, front: Front) -> AsyncIterator[bytes]:
    index = 0
    try:
        async for outputs in sse.with_pulse(generation.stream, front.settings.sse_comment_s):
            if outputs is None:
                yield sse.COMMENT
                continue
            tokens = generation.feed(outputs)
            events = []
            for token in tokens:
                index += 1
                event = {"index": index, **token, "generated_text": None, "details": None}
                if token is tokens[-1] and generation.finish_reason:
                    event |= {"generated_text": generation.generated_text, "details": generation.details()}
                events.append(sse.encode(event, event_id=index))
            if events:
                yield b"".join(events)
            if generation.is_over:
                break
        if not generation.is_over:
            generation.fail(GenerationFailed("the generation ended before its last token"))
    except Exception:
        error_log.exception("internal error in a stream")
        generation.fail(Internal())
    if generation.error is not None:
        front.metrics.failed(generation.error.error_type)
        yield sse.encode(generation.error.body())


async def _collect(generation: Generation, request: Request) -> list[dict[str, Any]]:
    """Return every token of the answer; fewer if the client left."""
    tokens: list[dict[str, Any]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        async for outputs in generation.stream:
            tokens += generation.feed(outputs)
            if generation.is_over:
                break
        group.cancel_scope.cancel()
    return tokens


async def _answer(generation: Generation, request: Request, *, as_list: bool = False) -> Response:
    tokens = await _collect(generation, request)
    if not generation.is_over:
        if await request.is_disconnected():
            return Response(status_code=CLIENT_LEFT)
        generation.fail(GenerationFailed("the generation ended before its last token"))
    if generation.error is not None:
        raise generation.error
    answer: dict[str, Any] = {"generated_text": generation.generated_text}
    if generation.job.wants_details:
        details = generation.details() | {"prefill": generation.prefill()}
        details["tokens"] = [token["token"] for token in tokens]
        if generation.job.request.sampling.top_n_tokens:
            details["top_tokens"] = [token["top_tokens"] for token in tokens]
        answer["details"] = details
    content = msgspec.json.encode([answer] if as_list else answer)
    return Response(content, media_type="application/json", headers=generation.headers())


Held = Annotated[Generation, Depends(hold_generation)]
HeldStreamed = Annotated[Generation, Depends(hold_streamed)]

_EITHER: dict[int | str, dict[str, Any]] = {200: {"model": GenerateAnswer, "content": stream_content()}}


@router.post("/generate", response_class=Response, responses=_EITHER, openapi_extra=takes(GenerateBody))
async def generate(request: Request, front: FrontDep, generation: Held) -> Response:
    """Answer whole, or as a stream if the body has `"stream": true`."""
    if generation.job.is_stream:
        return sse.response(_events(generation, front))
    return await _answer(generation, request)


@router.post(
    "/generate_stream",
    response_class=Response,
    responses={200: {"content": stream_content()}},
    openapi_extra=takes(GenerateBody),
)
async def generate_stream(front: FrontDep, generation: HeldStreamed) -> Response:
    """Answer as a stream, one event a token."""
    return sse.response(_events(generation, front))


@router.post(
    "/",
    response_class=Response,
    responses={200: {"model": list[GenerateAnswer], "content": stream_content()}},
    openapi_extra=takes(GenerateBody),
)
async def compat_generate(request: Request, front: FrontDep, generation: Held) -> Response:
    """TGI's compatibility route: as `/generate`, but a whole answer comes as a list of one."""
    if generation.job.is_stream:
        return sse.response(_events(generation, front))
    return await _answer(generation, request, as_list=True)
