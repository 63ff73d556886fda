"""`create_app`: routes, lifespan, error handlers and the door, put together. Decides nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from server.api import generate, health, info, openapi, tokenize
from server.api.front import Front
from server.engine.client import EngineClient
from server.errors import ApiError, Internal, MethodNotAllowed, NotFound, ValidationFailed
from server.generation_config import GenerationDefaults
from server.metrics import Metrics
from server.middleware import OPEN_PATHS, Gate, InPieces, Observe
from server.settings import Settings
from server.text.tokenizer import Tokenizer

ROUTERS = (generate.router, health.router, info.router, tokenize.router)


def create_app(
    settings: Settings,
    client: EngineClient,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults | None = None,
) -> FastAPI:
    """Return the application, with which `client` starts and stops."""
    metrics = Metrics(client.stats)
    front = Front(
        settings=settings,
        client=client,
        tokenizer=tokenizer,
        metrics=metrics,
        version=server_version(),
        defaults=defaults or GenerationDefaults(),
    )
    app = FastAPIOffline(  # as FastAPI, but /docs brings its own script instead of a foreign host's
        title="Verbatim",
        version=front.version,
        lifespan=_lifespan(client),
        redirect_slashes=False,
        redoc_url=None,
        exception_handlers=_error_handlers(metrics),
    )
    app.state.front = front
    for router in ROUTERS:
        app.include_router(router)
    openapi.install(app, needs_key=bool(settings.api_keys))
    app.add_middleware(InPieces)
    app.add_middleware(Gate, api_keys=[key.get_secret_value() for key in settings.api_keys])
    app.add_middleware(Observe, metrics=metrics)  # added last, so outermost
    return app


def server_version() -> str:
    """Return the installed version."""
    try:
        return version("verbatim-server")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


def _lifespan(client: EngineClient) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await client.start()
        try:
            yield
        finally:
            await client.stop()

    return lifespan


def _error_handlers(metrics: Metrics) -> dict[Any, Any]:
    def answer(error: ApiError) -> Response:
        metrics.failed(error.error_type)
        return error.response()

    async def api_error(_: Request, error: ApiError) -> Response:
        return answer(error)

    async def routing_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == NotFound.status:
            return answer(NotFound("there is no such route"))
        if error.status_code == MethodNotAllowed.status:
            # The probes take two methods, and Starlette knows of the route of one.
            is_probe = request.scope["path"] in OPEN_PATHS
            allowed = "GET, HEAD" if is_probe else (error.headers or {}).get("Allow", "")
            return answer(MethodNotAllowed(f"this route takes {allowed} alone", {"Allow": allowed}))
        return answer(Internal())

    async def validation_error(_: Request, __: RequestValidationError) -> Response:
        return answer(ValidationFailed("the request does not have the documented shape"))

    return {ApiError: api_error, HTTPException: routing_error, RequestValidationError: validation_error}
