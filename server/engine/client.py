"""The front's door to an engine: submit a request, hold its stream; letting go of the stream cancels it.

Knows nothing of HTTP or text, and not where the engine runs: that is worker_client.py.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from model.interface import ModelInfo
from server.engine.request import EngineStats, GenerationRequest, Progress, Timings, TokenOutput

# So that what is written of them for a slow reader stays small. An alternative counts as a token.
MAX_OUTPUTS_AT_ONCE: Final = 32
# Of one stream: 1,024 plain tokens, 33 with 20 alternatives each. The engine does not run further ahead.
MAX_UNREAD_BYTES: Final = 8 * 1024
_NO_ID: Final = -1  # where a token has no alternative: a cut may leave fewer than were asked for


class EngineError(Exception):
    """Why a request was not taken: a sentence for the client, and when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineOverloaded(EngineError):
    """The queue is full."""


class EngineUnavailable(EngineError):
    """Loading, stopping, or the worker is being replaced or was given up."""


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

    def submit_choices(self, request: GenerationRequest, num_choices: int) -> list[TokenStream]:
        """Start so many answers to one prompt, or none of them."""
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
    """The outputs of one generation, in order. Closing it cancels what is left.

    It keeps the ids in a plain array: with the request, that is all that another engine needs to go on if
    this one is lost. What else a token brings is kept until it is read, as small as it can be: 8 bytes, and
    12 for each of its alternatives if they were asked for. A reader that is behind by `MAX_UNREAD_BYTES` is
    to be given no more until it has read half of that: `on_caught_up` says when.
    """

    def __init__(
        self,
        request: GenerationRequest,
        on_close: Callable[[], None],
        on_caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.request = request
        self.token_ids = array("i")
        self._logprobs = array("d")  # of those that are not read
        self._num_top = request.sampling.top_n_tokens
        self._top_ids = array("i")  # of those that are not read, `_num_top` each
        self._top_logprobs = array("d")
        self._max_unread = MAX_UNREAD_BYTES // (8 + 12 * self._num_top)  # tokens
        self._max_outputs = max(1, MAX_OUTPUTS_AT_ONCE // (1 + self._num_top))
        self._prompt_logprobs: tuple[float, ...] = ()
        self._timings: Timings | None = None
        self._last: TokenOutput | None = None
        self._num_read = 0
        self._is_over = False  # nothing more will be read
        self._arrival_s = time.monotonic()
        self._on_close = on_close
        self._on_caught_up = on_caught_up
        self._arrival = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> list[TokenOutput]:
        """What came since the last look: one output or more, up to `MAX_OUTPUTS_AT_ONCE`, and the end."""
        await self.wait()
        if self._is_over:
            raise StopAsyncIteration
        was_behind = len(self._logprobs) > self._max_unread // 2
        outputs = self._take()
        if was_behind and len(self._logprobs) <= self._max_unread // 2:
            self._on_caught_up()
        if self._last is not None and self._num_read == len(self.token_ids):
            if self._last.token_id is not None:
                outputs.pop()
            outputs.append(self._last)
            self._is_over = True
        return outputs

    async def wait(self) -> None:
        """Until there is something to read, or nothing more will come."""
        while not self._is_over and self._last is None and self._num_read == len(self.token_ids):
            self._arrival.clear()
            await self._arrival.wait()

    def put(self, output: TokenOutput) -> None:
        """The client's side: deliver. What comes after the last output is dropped."""
        if self._last is not None:
            return
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
            self._logprobs.append(output.logprob)
            num_missing = self._num_top - len(output.top)
            self._top_ids.extend([*(token_id for token_id, _ in output.top), *[_NO_ID] * num_missing])
            self._top_logprobs.extend([*(logprob for _, logprob in output.top), *[0.0] * num_missing])
        self._prompt_logprobs = output.prompt_logprobs or self._prompt_logprobs
        self._timings = output.timings or self._timings
        if output.finish_reason is not None:
            self._last = output
            self._stop_clock()
        self._arrival.set()

    def end_at(self, deadline_s: float) -> None:
        """Let the generation end when `time.monotonic` reads this, with what there is."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(max(0.0, deadline_s - time.monotonic()), self._expire)

    def progress(self) -> Progress:
        """How far it has come."""
        return Progress(arrival_s=self._arrival_s, token_ids=tuple(self.token_ids), timings=self._timings)

    @property
    def is_barren(self) -> bool:
        """Whether it has ended without a token."""
        return self._last is not None and not self.token_ids

    @property
    def is_behind(self) -> bool:
        """Whether its reader has so much to read that more should wait."""
        return self._last is None and len(self._logprobs) >= self._max_unread

    @property
    def num_outstanding(self) -> int:
        """Tokens that may still come."""
        return self.request.max_new_tokens - len(self.token_ids)

    def close(self) -> None:
        """Let go. Safe at any time and any number of times."""
        self._is_over = True
        self._stop_clock()
        self._arrival.set()
        self._on_close()

    def _take(self) -> list[TokenOutput]:
        """The next ones that are not read."""
        outputs = [self._output(place) for place in range(min(len(self._logprobs), self._max_outputs))]
        self._num_read += len(outputs)
        del self._logprobs[: len(outputs)]
        del self._top_ids[: len(outputs) * self._num_top]
        del self._top_logprobs[: len(outputs) * self._num_top]
        return outputs

    def _output(self, place: int) -> TokenOutput:
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, ()  # they come with the first token
        its_top = slice(place * self._num_top, (place + 1) * self._num_top)
        return TokenOutput(
            token_id=self.token_ids[self._num_read + place],
            logprob=self._logprobs[place],
            top=tuple(
                (token_id, logprob)
                for token_id, logprob in zip(self._top_ids[its_top], self._top_logprobs[its_top], strict=True)
                if token_id != _NO_ID
            ),
            prompt_logprobs=prompt_logprobs,
            timings=self._timings,
        )

    def _expire(self) -> None:
        self.put(TokenOutput(token_id=None, finish_reason="deadline"))
        self._on_close()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
