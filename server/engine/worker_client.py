"""An engine's client whose engine is a worker process: starts it, talks to it, and sees when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from model.interface import ModelInfo
from server.engine.client import EngineOverloaded, EngineStatus, EngineUnavailable, TokenStream
from server.engine.frames import (
    LENGTH_BYTES,
    Abort,
    Command,
    Event,
    Loading,
    Ready,
    Refused,
    Stepped,
    Submit,
    WorkerConfig,
    body_length,
    encode,
    event_decoder,
)
from server.engine.heartbeat import Heartbeat
from server.engine.request import EngineStats, GenerationRequest, TokenOutput

logger = logging.getLogger(__name__)


class WorkerClient:
    """An `EngineClient` whose engine is a worker process at the other end of a socket pair."""

    def __init__(
        self,
        config: WorkerConfig,
        max_waiting: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        silence_limit_s: float = 10.0,
    ) -> None:
        self.config = config
        self.max_live = config.max_num_seqs + max_waiting
        self.on_progress = on_progress
        self.silence_limit_s = silence_limit_s  # over work, without a beat: then it is not ready
        self.refusal: str | None = None  # why the model cannot be served, once the worker said so
        self._info: ModelInfo | None = None
        self._state = "loading"
        self._stats = EngineStats()
        self._speed = Speed()
        self._streams: dict[int, TokenStream] = {}
        self._busy_since_s = 0.0  # when the first of the present streams began
        self._last_id = 0
        self._settled = asyncio.Event()  # ready, or never going to be

    @property
    def info(self) -> ModelInfo | None:
        """The model, once it is loaded."""
        return self._info

    def stats(self) -> EngineStats:
        """The engine's last snapshot."""
        return self._stats

    def status(self) -> EngineStatus:
        """What is known here, and how long the worker has been silent over work."""
        if self._state == "ready" and self._silent_s() > self.silence_limit_s:
            return EngineStatus(is_live=True, is_ready=False, reason="the engine does not answer")
        is_live = self._state in ("loading", "ready", "draining")
        return EngineStatus(is_live=is_live, is_ready=self._state == "ready", reason=self._state)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Start a generation, or refuse it at once."""
        status = self.status()
        if not status.is_ready:
            raise EngineUnavailable(f"the server cannot take requests: {status.reason}", retry_after_s=2.0)
        if len(self._streams) >= self.max_live:
            raise EngineOverloaded(
                f"the queue is full: {len(self._streams)} requests are running or waiting, "
                f"the limit is {self.max_live}",
                retry_after_s=self._seconds_to_a_place(),
            )
        self._last_id = sequence_id = self._last_id + 1
        self._send(Submit(sequence_id, request))  # first: what cannot be sent must not hold a place
        if not self._streams:
            self._busy_since_s = time.monotonic()
        stream = TokenStream(request.max_new_tokens, lambda: self._let_go(sequence_id))
        self._streams[sequence_id] = stream
        return stream

    async def start(self) -> None:
        """Start the worker; returns before it is ready."""
        self._heartbeat = Heartbeat.create()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "server.engine.worker", str(theirs.fileno())]
        self._process = subprocess.Popen(
            [*command, str(self._heartbeat.descriptor)],
            pass_fds=(theirs.fileno(), self._heartbeat.descriptor),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on the terminal is the front's to handle
        )
        theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._send(self.config)
        self._listening = asyncio.create_task(self._listen())

    async def wait_until_settled(self) -> None:
        """Until the model is ready, or `refusal` says why it never will be."""
        await self._settled.wait()

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        if self._state in ("loading", "ready"):
            self._state = "draining"

    async def wait_until_idle(self) -> None:
        """Until no stream is left."""
        while self._streams:
            await asyncio.sleep(0.02)

    def end_streams(self, reason: str) -> None:
        """End every stream with an error."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.put(TokenOutput(token_id=None, finish_reason="error", error=reason))

    async def stop(self) -> None:
        """Close the socket, by which the worker ends; kill it if it does not."""
        self._end("stopping", "the server is stopping")
        self._writer.close()
        try:
            await asyncio.to_thread(self._process.wait, 5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        self._heartbeat.close()

    def _send(self, command: Command) -> None:
        self._writer.write(encode(command))

    def _let_go(self, sequence_id: int) -> None:
        if self._streams.pop(sequence_id, None) is not None:
            self._send(Abort(sequence_id))

    def _silent_s(self) -> float:
        """How long the worker has said nothing although it has work."""
        last_s = max(self._heartbeat.last_beat_s(), self._busy_since_s)
        return time.monotonic() - last_s if self._streams else 0.0

    async def _listen(self) -> None:
        """Hand every event on, until the worker is gone."""
        try:
            while True:
                length = body_length(await self._reader.readexactly(LENGTH_BYTES))
                self._take(event_decoder.decode(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._lost()
        except Exception:  # a bug here must not look like an engine that is merely slow
            logger.exception("the engine's client failed")
            self._end("the engine is down", "the engine failed while generating")

    async def _lost(self) -> None:
        """The worker has closed its end: it refused its model, or it died."""
        if self._state not in ("loading", "ready", "draining"):
            return
        if self._info is not None:
            self._end("the engine is down", "the engine failed while generating")
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, 5.0)
        message = f"the engine worker ended with status {self._process.poll()}"
        logger.error(message)
        if self._info is None:
            self.refusal = f"{message} while it loaded the model"
            self._end("the engine is down", self.refusal)

    def _take(self, event: Event) -> None:
        match event:
            case Stepped(news, stats):
                self._stats = stats
                self._speed.count(sum(output.token_id is not None for _, output in news))
                for sequence_id, output in news:
                    self._deliver(sequence_id, output)
            case Loading(done, total):
                self.on_progress(done, total)
            case Ready(info):
                self._info = info
                if self._state == "loading":
                    self._state = "ready"
                self._settled.set()
            case Refused(reason):
                self.refusal = reason
                self._end("the model cannot be served", reason)

    def _deliver(self, sequence_id: int, output: TokenOutput) -> None:
        stream = self._streams.get(sequence_id)  # None: let go of, while this was on its way
        if stream is None:
            return
        if output.finish_reason is not None:
            del self._streams[sequence_id]
        stream.put(output)

    def _end(self, state: str, reason: str) -> None:
        """No more tokens will come: every stream ends with an error."""
        self._state = state
        self._stats = EngineStats()
        self._settled.set()
        self.end_streams(reason)

    def _seconds_to_a_place(self) -> float:
        """How long one live stream's share of the outstanding tokens takes at the measured speed."""
        if not self._speed.tokens_per_s:
            return 1.0  # nothing was measured yet
        outstanding = sum(stream.num_outstanding for stream in self._streams.values())
        return outstanding / len(self._streams) / self._speed.tokens_per_s


class Speed:
    """Tokens per second while there is work: pauses of over a second count as idle."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens_per_s = 0.0
        self._clock = clock
        self._last_s = clock()
        self._num_tokens = 0
        self._busy_s = 0.0

    def count(self, num_tokens: int) -> None:
        """Some tokens arrived now."""
        now_s = self._clock()
        self._busy_s += min(now_s - self._last_s, 1.0)
        self._last_s = now_s
        self._num_tokens += num_tokens
        if self._busy_s >= 1.0:
            measured = self._num_tokens / self._busy_s
            self.tokens_per_s = (self.tokens_per_s + measured) / 2 if self.tokens_per_s else measured
            self._num_tokens, self._busy_s = 0, 0.0
