"""POST /generate, /generate_stream and /: TGI's routes.

A dependency holds the stream and closes it however the request ends: what can be refused is refused there,
before the first byte, and the routes only tell what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from server.api import sse
from server.api.answers import GenerateAnswer
from server.api.body import off_loop, parse_body, read_body
from server.api.front import Front, FrontDep
from server.api.generation import Generation
from server.api.openapi import WITH_ENGINE, refusals, stream_content, takes
from server.api.schemas import GenerateBody
from server.api.translate import Job, translate
from server.engine.client import EngineOverloaded, EngineUnavailable
from server.errors import CLIENT_LEFT, GenerationFailed, Internal, Overloaded, Unavailable

router = APIRouter(tags=["generate"], responses=refusals(WITH_ENGINE))

error_log = logging.getLogger("verbatim.error")


@asynccontextmanager
async def _hold(request: Request, front: Front, *, always_streams: bool) -> AsyncIterator[list[Generation]]:
    arrived_s = time.monotonic()
    raw = await read_body(request, front.settings)
    tenant = getattr(request.state, "tenant", 0)

    def prepare() -> Job:
        body = parse_body(GenerateBody, raw)
        return translate(body, front, is_stream=always_streams or bool(body.stream), tenant=tenant)

    is_tame = front.tokenizer.is_tame
    job = await off_loop(len(raw), prepare, front.body_threads, is_tame=is_tame)
    try:
        streams = front.client.submit_choices(job.request, job.num_choices)
    except EngineOverloaded as error:
        raise Overloaded(str(error), error.retry_after_s) from None
    except EngineUnavailable as error:
        raise Unavailable(str(error), error.retry_after_s) from None
    generations: list[Generation] = []
    try:
        for stream in streams:
            if job.deadline_s is not None:
                stream.end_at(arrived_s + job.deadline_s)
            generations.append(Generation(job, stream, front, arrived_s))
        yield generations
    finally:
        for stream in streams:
            stream.close()
        is_over = all(one.is_over for one in generations) or any(one.error for one in generations)
        if not is_over:
            front.metrics.departed()


async def hold_generation(request: Request, front: FrontDep) -> AsyncIterator[list[Generation]]:
    """Accept what the body asks for, and hold it until the answer is sent or the client has left."""
    async with _hold(request, front, always_streams=False) as generations:
        yield generations


async def hold_streamed(request: Request, front: FrontDep) -> AsyncIterator[list[Generation]]:
    """Do the same, for the route that always streams."""
    async with _hold(request, front, always_streams=True) as generations:
        yield generations


async def _attended(request: Request, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` for as long as the client stays; whether it stayed to the end of it."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(leave())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()  # raises what it raised
        return True
    finally:
        working.cancel()
        leaving.cancel()


async def _first(generation: Generation, silence_s: float) -> None:
    """Wait for the first token, though not for ever: what fails before it has a true status."""
    # With a deadline this has an end: past it without a token, the answer is a refusal.
    timeout_s = silence_s if generation.job.deadline_s is None else None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await generation.stream.wait()
    if generation.stream.is_barren:
        generation.feed(await anext(generation.stream))
    if generation.error is not None:
        raise generation.error


async def _stream(generation: Generation, request: Request, front: Front) -> Response:
    if await _attended(request, _first(generation, front.settings.sse_comment_s)):
        return sse.response(_events(generation, front))
    return Response(status_code=CLIENT_LEFT)


def _told(generation: Generation, tokens: list[dict[str, Any]], num_before: int) -> Iterator[bytes]:
    """Return the events of these tokens, each encoded when it is asked for."""
    for index, token in enumerate(tokens, start=num_before + 1):
        event = {"index": index, **token, "generated_text": None, "details": None}
        if token is tokens[-1] and generation.finish_reason:
            event |= {"generated_text": generation.generated_text, "details": generation.details()}
        yield sse.encode(event, event_id=index)


async def _events(generation: Generation, front: Front) -> AsyncIterator[bytes]:
    num_told = 0
    try:
        if not generation.stream.token_ids:
            yield sse.COMMENT  # its headers have been waited for already
        async for outputs in sse.with_pulse(generation.stream, front.settings.sse_comment_s):
            if outputs is None:
                yield sse.COMMENT
                continue
            tokens = generation.feed(outputs)
            for piece in sse.joined(_told(generation, tokens, num_told)):
                yield piece
            num_told += len(tokens)
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


async def _read(generation: Generation, tokens: list[dict[str, Any]]) -> None:
    async for outputs in generation.stream:
        tokens += generation.feed(outputs)
        if generation.is_over:
            return
    generation.fail(GenerationFailed("the generation ended before its last token"))


async def _answer(generations: list[Generation], request: Request, *, as_list: bool = False) -> Response:
    tokens: list[list[dict[str, Any]]] = [[] for _ in generations]

    async def read_all() -> None:
        await asyncio.gather(*map(_read, generations, tokens))

    if not await _attended(request, read_all()):
        return Response(status_code=CLIENT_LEFT)
    for generation in generations:
        if generation.error is not None:
            raise generation.error
    told = list(zip(generations, tokens, strict=True))
    job = generations[0].job
    if job.is_ranked:
        told.sort(key=lambda pair: -pair[0].mean_logprob)
    (best, its_tokens), *others = told[: job.num_told]
    answer: dict[str, Any] = {"generated_text": best.generated_text}
    if job.wants_details:
        prefill = generations[0].prefill()
        answer["details"] = best.details() | best.every_token(its_tokens, prefill)
        if others:
            answer["details"]["best_of_sequences"] = [one.as_other(t, prefill) for one, t in others]
    content = msgspec.json.encode([answer] if as_list else answer)
    return Response(content, media_type="application/json", headers=best.headers())


Held = Annotated[list[Generation], Depends(hold_generation)]
HeldStreamed = Annotated[list[Generation], Depends(hold_streamed)]

_EITHER: dict[int | str, dict[str, Any]] = {200: {"model": GenerateAnswer, "content": stream_content()}}


@router.post("/generate", response_class=Response, responses=_EITHER, openapi_extra=takes(GenerateBody))
async def generate(request: Request, front: FrontDep, generations: Held) -> Response:
    """Answer whole, or as a stream if the body has `"stream": true`."""
    if generations[0].job.is_stream:
        return await _stream(generations[0], request, front)
    return await _answer(generations, request)


@router.post(
    "/generate_stream",
    response_class=Response,
    responses={200: {"content": stream_content()}},
    openapi_extra=takes(GenerateBody),
)
async def generate_stream(request: Request, front: FrontDep, generations: HeldStreamed) -> Response:
    """Answer as a stream, one event a token."""
    return await _stream(generations[0], request, front)


@router.post(
    "/",
    response_class=Response,
    responses={200: {"model": list[GenerateAnswer], "content": stream_content()}},
    openapi_extra=takes(GenerateBody),
)
async def compat_generate(request: Request, front: FrontDep, generations: Held) -> Response:
    """TGI's compatibility route: as `/generate`, but a whole answer comes as a list of one."""
    if generations[0].job.is_stream:
        return await _stream(generations[0], request, front)
    return await _answer(generations, request, as_list=True)
