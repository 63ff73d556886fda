"""The front's door to an engine: submit a request, hold its stream; letting go of the stream cancels it.

Knows nothing of HTTP or text, and not where the engine runs: that is worker_client.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from model.interface import ModelInfo
from server.engine.request import EngineStats, GenerationRequest, TokenOutput


class EngineError(Exception):
    """Why a request was not taken: a sentence for the client, and when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineOverloaded(EngineError):
    """The queue is full."""


class EngineUnavailable(EngineError):
    """Loading, stopping, or the worker is gone."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the probes want to know, without asking the worker."""

    is_live: bool
    is_ready: bool
    reason: str


class EngineClient(Protocol):
    """What the front needs of an engine."""

    @property
    def info(self) -> ModelInfo | None:
        """The model, once it is loaded."""
        ...

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Start a generation. Raises `EngineError` before anything is queued."""
        ...

    def status(self) -> EngineStatus:
        """Never waits."""
        ...

    def stats(self) -> EngineStats:
        """The engine's last snapshot."""
        ...

    async def start(self) -> None:
        """Begin to load; readiness comes later."""
        ...

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        ...

    async def wait_until_idle(self) -> None:
        """Until no stream is left."""
        ...

    def end_streams(self, reason: str) -> None:
        """End every stream with an error."""
        ...

    async def stop(self) -> None:
        """End at once; streams that still run get an error."""
        ...


class TokenStream:
    """The outputs of one generation, in order. Closing it cancels what is left."""

    def __init__(self, max_new_tokens: int, on_close: Callable[[], None]) -> None:
        self.num_outstanding = max_new_tokens  # tokens that may still come
        self._on_close = on_close
        self._held: list[TokenOutput] = []
        self._arrival = asyncio.Event()
        self._is_over = False

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> list[TokenOutput]:
        """All that has arrived since the last look, at least one: a slow reader's outputs merge here."""
        while not self._held:
            if self._is_over:
                raise StopAsyncIteration
            self._arrival.clear()
            await self._arrival.wait()
        held, self._held = self._held, []
        return held

    def put(self, output: TokenOutput) -> None:
        """The client's side: deliver."""
        self._held.append(output)
        self.num_outstanding -= 1
        self._is_over = output.finish_reason is not None
        self._arrival.set()

    def close(self) -> None:
        """Let go. Safe at any time and any number of times."""
        self._is_over = True
        self._held.clear()
        self._arrival.set()
        self._on_close()
