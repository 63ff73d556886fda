"""What every route may hold: one object, built once by `create_app`, and handed over as a dependency."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from model.interface import ModelInfo
from server.engine.client import EngineClient
from server.errors import Unavailable
from server.generation_config import GenerationDefaults
from server.metrics import Metrics
from server.settings import Settings
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The server's parts, as its routes see them."""

    settings: Settings
    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    version: str
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)  # the model's own wishes
    # For long bodies. More would only take turns, and each holds a body and what is made of it.
    body_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))

    def model_info(self) -> ModelInfo:
        """Return what was loaded; raises `Unavailable` before it is."""
        info = self.client.info
        if info is None:
            raise Unavailable(f"the server is not ready: {self.client.status().reason}", 1.0)
        return info


async def get_front(request: Request) -> Front:
    """Return the server's parts. Asynchronous, since FastAPI would call a plain function in a thread."""
    front: Front = request.app.state.front
    return front


FrontDep = Annotated[Front, Depends(get_front)]
