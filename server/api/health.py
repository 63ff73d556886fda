"""The probes: is the server alive, is it ready. They look at the engine's status and never wait."""

from __future__ import annotations

from fastapi import APIRouter

from server.api.answers import StatusAnswer
from server.api.front import FrontDep
from server.api.openapi import refusals
from server.errors import HeadersTooLarge, Internal, Unavailable

router = APIRouter(tags=["health"], responses=refusals((HeadersTooLarge, Internal, Unavailable)))

_RETRY_AFTER_S = 1.0


@router.get("/health/live")
@router.head("/health/live", include_in_schema=False)
async def live(front: FrontDep) -> StatusAnswer:
    """200 while the server runs and its engine loads, lives or is replaced; else 503."""
    status = front.client.status()
    return _answer("live", status.is_live, status.reason)


@router.get("/health/ready")
@router.get("/health")
@router.get("/ping")
@router.head("/health/ready", include_in_schema=False)
@router.head("/health", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
async def ready(front: FrontDep) -> StatusAnswer:
    """200 when a request sent now would be served; else 503 with the reason."""
    status = front.client.status()
    return _answer("ready", status.is_ready, status.reason)


def _answer(word: str, is_true: bool, reason: str) -> StatusAnswer:
    if not is_true:
        raise Unavailable(reason, _RETRY_AFTER_S)
    return StatusAnswer(status=word)
