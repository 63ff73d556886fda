"""POST /tokenize and /detokenize: the tokenizer, without the model."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from server.api.answers import DetokenizeAnswer, TextToken
from server.api.body import off_loop, parse_body, read_body
from server.api.front import Front, FrontDep
from server.api.openapi import WITH_BODY, refusals, takes
from server.api.schemas import DetokenizeBody, TokenizeBody
from server.api.translate import check_ids
from server.errors import ValidationFailed
from server.text.encoder import EncodeError

router = APIRouter(tags=["tokenize"], responses=refusals(WITH_BODY))


def _tokenize(raw: bytes, front: Front) -> bytes:
    body = parse_body(TokenizeBody, raw)
    try:
        spans = front.tokenizer.encode_with_offsets(body.inputs, body.add_special_tokens is not False)
    except EncodeError as error:
        raise ValidationFailed(f"inputs {error}") from error
    return msgspec.json.encode(spans)


def _detokenize(raw: bytes, front: Front) -> bytes:
    body = parse_body(DetokenizeBody, raw)
    check_ids("ids", body.ids, front.model_info().vocab_size)
    return msgspec.json.encode({"text": front.tokenizer.decode(body.ids)})


@router.post(
    "/tokenize",
    response_class=Response,
    responses={200: {"model": list[TextToken]}},
    openapi_extra=takes(TokenizeBody),
)
async def tokenize(request: Request, front: FrontDep) -> Response:
    """Cut a text into tokens; `start` and `stop` count its characters."""
    raw = await read_body(request, front.settings)
    is_tame = front.tokenizer.is_tame
    content = await off_loop(len(raw), lambda: _tokenize(raw, front), front.body_threads, is_tame=is_tame)
    return Response(content, media_type="application/json")


@router.post(
    "/detokenize",
    response_class=Response,
    responses={200: {"model": DetokenizeAnswer}},
    openapi_extra=takes(DetokenizeBody),
)
async def detokenize(request: Request, front: FrontDep) -> Response:
    """Join tokens into a text."""
    raw = await read_body(request, front.settings)
    content = await off_loop(len(raw), lambda: _detokenize(raw, front), front.body_threads)
    return Response(content, media_type="application/json")
