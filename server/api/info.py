"""What this server serves, and its series."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.answers import InfoAnswer
from server.api.front import FrontDep
from server.api.openapi import EVERYWHERE, refusals
from server.api.schemas import MAX_CHOICES, MAX_STOP_STRINGS
from server.errors import Unavailable

router = APIRouter(tags=["info"])


@router.get("/info", responses=refusals((*EVERYWHERE, Unavailable)))
async def info(front: FrontDep) -> InfoAnswer:
    """Tell what model is served, and the server's limits."""
    model = front.model_info()
    settings = front.settings
    return InfoAnswer(
        model_id=model.model_id,
        model_type=model.model_type,
        model_dtype=model.dtype,
        model_device_type=model.device,
        quantization=None,
        fingerprint=model.fingerprint,
        kernels=model.kernels,
        vocab_size=model.vocab_size,
        max_concurrent_requests=settings.max_num_seqs + settings.max_waiting,
        max_best_of=MAX_CHOICES,
        max_stop_sequences=MAX_STOP_STRINGS,
        max_input_tokens=model.max_total_tokens - 1,
        max_total_tokens=model.max_total_tokens,
        router="verbatim",
        version=front.version,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={**refusals(EVERYWHERE), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(front: FrontDep) -> Response:
    """Every series, in Prometheus' text format."""
    return Response(front.metrics.render(), media_type=CONTENT_TYPE_LATEST)
