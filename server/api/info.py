"""What this server serves, and its series."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ConfigDict, Field

from model.interface import MemoryPlan
from server.api.answers import Answer
from server.api.front import FrontDep
from server.api.openapi import EVERYWHERE, refusals
from server.api.schemas import MAX_CHOICES, MAX_STOP_STRINGS
from server.errors import Unavailable

router = APIRouter(tags=["info"])


class MemoryAnswer(Answer):
    """The plan of memory, in bytes; all of it is taken before the first request."""

    base_bytes: int = Field(description="interpreter and libraries of the worker, as measured")
    weight_bytes: int
    kv_bytes_per_token: int
    kv_cache_tokens: int
    kv_cache_bytes: int
    step_bytes: int = Field(description="the temporaries of the largest step")
    total_bytes: int
    free_bytes: int = Field(description="what was free when this was planned, within all limits")
    num_sequences: dict[int, int] = Field(description="by length in tokens: how many so long it holds")

    @classmethod
    def of(cls, plan: MemoryPlan) -> MemoryAnswer:
        """The plan, as it is told."""
        return cls(
            base_bytes=plan.base_bytes,
            weight_bytes=plan.weight_bytes,
            kv_bytes_per_token=plan.kv_bytes_per_token,
            kv_cache_tokens=plan.kv_cache_tokens,
            kv_cache_bytes=plan.kv_cache_bytes,
            step_bytes=plan.step_bytes,
            total_bytes=plan.total_bytes,
            free_bytes=plan.free_bytes,
            num_sequences=dict(plan.num_sequences),
        )


class InfoAnswer(Answer):
    """The model, and the server's limits. Lengths in tokens."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model_id: str
    model_type: str
    model_dtype: str
    model_device_type: str
    quantization: str | None = Field(description="the format of the linear layers' weights, if it is another")
    fingerprint: str = Field(description="SHA-256 over configuration, tokenizer and weights")
    kernels: str
    library: str = Field(description="PyTorch, and what it computes with")
    vocab_size: int
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    memory: MemoryAnswer
    router: str
    version: str


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
        quantization=model.quantization,
        fingerprint=model.fingerprint,
        kernels=model.kernels,
        library=model.library,
        vocab_size=model.vocab_size,
        max_concurrent_requests=settings.max_concurrent_requests,
        max_best_of=MAX_CHOICES,
        max_stop_sequences=MAX_STOP_STRINGS,
        max_input_tokens=model.max_total_tokens - 1,
        max_total_tokens=model.max_total_tokens,
        memory=MemoryAnswer.of(model.memory),
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
