"""How a server goes: at the first signal it drains, at the second it stops at once.

While it drains, requests are still answered, with 503 where they need the engine, so that a load balancer
learns of it; streams under way have `grace_s` to end. Decides only when; ending them is the client's work.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from types import FrameType

import uvicorn

from server.engine.client import EngineClient

logger = logging.getLogger("verbatim")

_LAST_BYTES_S = 2  # past the grace, for what is written to reach its readers
_LOOK_S = 0.02


class DrainingServer(uvicorn.Server):
    """uvicorn, which by itself closes the door first and cuts off what is left at the end of the grace."""

    def __init__(self, config: uvicorn.Config, client: EngineClient, grace_s: float) -> None:
        config.timeout_graceful_shutdown = _LAST_BYTES_S
        super().__init__(config)
        self._client = client
        self._grace_s = grace_s
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Serve until drained."""
        self._loop = asyncio.get_running_loop()
        await super().serve()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second time, stop at once. Called between any two instructions."""
        if self._captured_signals:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin, signal.Signals(sig).name)
        self._captured_signals.append(sig)

    def _begin(self, name: str) -> None:
        logger.info("%s: draining, for at most %g s", name, self._grace_s)
        self._client.drain()
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._grace_s):
                await self._client.wait_until_idle()
                # Answers that are whole, and not yet with slow readers; not those to newcomers.
                answers = set(self.server_state.tasks)
                while answers & self.server_state.tasks:
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            self._client.end_streams(f"the server stops: the answer took longer than its {self._grace_s:g} s")
        self.should_exit = True
