"""An engine's client whose engine is a worker process: it starts another when one dies, and loses no stream.

All that a stream is lies here: its request and the ids that came. A worker that dies or hangs is replaced,
and its streams are handed to the next one, which goes on where they were: with the same bits, so that nobody
notices. In the same way a stream whose reader is far behind is taken from the engine, and given back later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from model.interface import ModelInfo
from server.engine.client import EngineOverloaded, EngineStatus, EngineUnavailable, TokenStream
from server.engine.frames import Abort, Event, Loading, Logged, Ready, Refused, Stepped, Submit, WorkerConfig
from server.engine.memory import give_back_memory
from server.engine.quarantine import Quarantine
from server.engine.request import EngineStats, GenerationRequest, TokenOutput, choices_of
from server.engine.speed import Speed
from server.engine.watchdog import LOOK_S, Patience, Watchdog, activity_of
from server.engine.worker_process import WorkerProcess

logger = logging.getLogger("verbatim.engine")

_LOAD_SILENCE_S = 120.0  # between two tensors of a slow disk


class WorkerClient:
    """An `EngineClient` whose engine is a worker process at the other end of a socket pair."""

    def __init__(
        self,
        config: WorkerConfig,
        max_waiting: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        patience: Patience | None = None,
        worker_module: str = "server.engine.worker",
    ) -> None:
        self.config = config
        self.max_live = config.max_num_seqs + max_waiting
        self.on_progress = on_progress
        self.patience = patience or Patience()
        self.worker_module = worker_module
        self.refusal: str | None = None  # why the model cannot be served, once the worker said so
        self._info: ModelInfo | None = None
        self._state = "loading"
        self._is_draining = False
        self._stats = EngineStats()
        self._past = EngineStats()  # what the workers before this one had counted
        self._speed = Speed()
        self._streams: dict[int, TokenStream] = {}
        self._paused: set[int] = set()  # of them, those that the worker does not have: a reader is behind
        self._quarantine = Quarantine()
        self._num_deaths = 0  # in a row, without a token in between
        self._last_id = 0
        self._settled = asyncio.Event()  # ready, or never going to be
        self._worker = WorkerProcess(config, worker_module)  # it gets ready while the caller does

    @property
    def info(self) -> ModelInfo | None:
        """The model, once it is loaded."""
        return self._info

    @property
    def worker_pid(self) -> int:
        """The process id of the present worker."""
        return self._worker.pid

    def stats(self) -> EngineStats:
        """The engine's last snapshot; its counts go on from one worker to the next."""
        now = self._stats.after(self._past)
        return msgspec.structs.replace(now, num_waiting=now.num_waiting + len(self._paused))

    def status(self) -> EngineStatus:
        """What is known here; the worker is not asked. Silent is one that may soon be found to hang."""
        is_live, reason = self._state in ("loading", "ready", "restarting"), self._state
        if reason == "ready" and self._watchdog.silent_s > self.patience.watchdog_s / 2:
            reason = "silent"
        if is_live and self._is_draining:
            reason = "draining"
        return EngineStatus(is_live=is_live, is_ready=reason == "ready", reason=reason)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Start a generation, or refuse it at once."""
        return self.submit_choices(request, 1)[0]

    def submit_choices(self, request: GenerationRequest, num_choices: int) -> list[TokenStream]:
        """Start so many answers to one prompt, or refuse all of them at once."""
        reason = self.status().reason
        if reason not in ("ready", "silent"):  # should it hang, the next worker serves this, too
            raise EngineUnavailable(f"the server cannot take requests: {reason}", retry_after_s=2.0)
        num_live = len(self._streams)
        if num_live + num_choices > self.max_live:
            left = sum(stream.num_outstanding for stream in self._streams.values()) / max(1, num_live)
            why = f"the queue is full: {num_live} requests run or wait, the limit is {self.max_live}"
            raise EngineOverloaded(why, retry_after_s=self._speed.seconds_for(left))
        return [self._submit(its_request) for its_request in choices_of(request, num_choices)]

    async def start(self) -> None:
        """Listen to the worker, which was born with this; returns before it is ready."""
        self._supervising = asyncio.create_task(self._supervise())

    async def wait_until_settled(self) -> None:
        """Until the model is ready, or `refusal` says why it never will be."""
        await self._settled.wait()

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        self._is_draining = True

    async def wait_until_idle(self) -> None:
        """Until no stream is left."""
        while self._streams:
            await asyncio.sleep(0.02)

    def end_streams(self, reason: str) -> None:
        """End every stream with an error."""
        streams, self._streams, self._paused = self._streams, {}, set()
        for stream in streams.values():
            stream.put(TokenOutput(token_id=None, finish_reason="error", error=reason))

    async def stop(self) -> None:
        """Close the socket, by which the worker ends; kill it if it does not."""
        self._end("stopping", "the server is stopping")
        self._supervising.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervising
        await self._worker.end()

    def _submit(self, request: GenerationRequest) -> TokenStream:
        self._last_id = sequence_id = self._last_id + 1
        stream = TokenStream(request, partial(self._let_go, sequence_id), partial(self._go_on, sequence_id))
        self._hand_over(sequence_id, stream)  # first: if it cannot be sent, it holds no place
        self._streams[sequence_id] = stream
        return stream

    def _let_go(self, sequence_id: int) -> None:
        if self._streams.pop(sequence_id, None) is not None:
            self._paused.discard(sequence_id)
            self._clear(sequence_id)
            if self._state == "ready":
                self._worker.send(Abort(sequence_id))

    def _go_on(self, sequence_id: int) -> None:
        if sequence_id in self._paused:
            self._paused.remove(sequence_id)
            if self._state == "ready":
                self._hand_over(sequence_id, self._streams[sequence_id])

    # ---- one worker after another -------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Hand on what the worker says, and start another when it is gone, until that is of no use."""
        try:
            while True:
                await self._worker.connect()
                self._watchdog = Watchdog(partial(activity_of, self._worker.pid))
                watching = asyncio.create_task(self._watch())
                try:
                    async for event in self._worker.events():
                        self._take(event)
                finally:
                    watching.cancel()
                if not await self._outlive():
                    return
        except Exception:  # a bug here must not look like an engine that is merely slow
            logger.exception("the engine's client failed")
            self._end("the engine is down", "the engine failed while generating")

    async def _watch(self) -> None:
        """Kill a worker that is silent over its work. Its end of the socket closes, and the rest follows."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._streams:
                give_back_memory()
            limit_s = self.patience.watchdog_s if self._state == "ready" else _LOAD_SILENCE_S
            if self._state == "ready" and len(self._streams) == len(self._paused):
                self._watchdog.rest()
            elif self._watchdog.is_overdue(self._worker.heartbeat.last_beat_s(), limit_s):
                logger.error("the engine worker has been silent for over %g s: it is killed", limit_s)
                self._worker.kill()
                return

    async def _outlive(self) -> bool:
        """The worker is gone: start the next one, and say whether that was worth trying."""
        worker, step_ids = self._worker, self._worker.heartbeat.step_ids()
        was_ready, self._state = self._state == "ready", "restarting"
        self._past, self._stats = self.stats(), EngineStats()
        how = f"the engine worker {await worker.end()}"
        if self._info is None:
            self.refusal = self.refusal or f"{how} while it loaded the model"
            self._end("the model cannot be served", self.refusal)
            return False
        self._num_deaths += 1
        logger.error("%s (%d in a row); streams under way: %d", how, self._num_deaths, len(self._streams))
        if was_ready:
            suspects = [i for i in step_ids if i in self._streams and i not in self._paused]
            self._condemn(self._quarantine.died(suspects))
        if self._num_deaths >= self.patience.max_deaths:
            logger.error("%d engine workers died in a row: no other is started", self._num_deaths)
            self._end("the engine is down", "the engine failed while generating")
            return False
        if self._num_deaths > 1:
            await asyncio.sleep(self.patience.first_pause_s * 2 ** (self._num_deaths - 2))
        self._worker = WorkerProcess(self.config, self.worker_module)
        self._past = msgspec.structs.replace(self._past, num_restarts=self._past.num_restarts + 1)
        return True

    def _condemn(self, sequence_id: int | None) -> None:
        if sequence_id is not None and (stream := self._streams.pop(sequence_id, None)) is not None:
            logger.error("a request is ended: the engine died each time that it was computed")
            self._num_deaths = 0  # they had their reason
            reason = "the engine died each time that it computed this request"
            stream.put(TokenOutput(token_id=None, finish_reason="error", error=reason))

    def _resume(self, info: ModelInfo) -> None:
        """A worker is ready: every stream goes on, the suspects one at a time."""
        if self._info is not None and info.fingerprint != self._info.fingerprint:
            self.refusal = "the model's files have changed: a started answer cannot be continued with others"
            logger.error(self.refusal)
            self._end("the model cannot be served", self.refusal)
            self._worker.kill()
            return
        self._info = info
        # The next worker gets the same memory, whatever is free then: what was accepted must fit.
        self.config = msgspec.structs.replace(self.config, kv_cache_tokens=info.num_blocks * info.block_size)
        if self._state == "restarting":
            logger.info("the engine is back; streams under way: %d", len(self._streams))
        self._state = "ready"
        self._watchdog.rest()
        for sequence_id, stream in self._streams.items():
            if sequence_id not in self._quarantine and sequence_id not in self._paused:
                self._hand_over(sequence_id, stream)
        self._try_next()
        self._settled.set()

    def _hand_over(self, sequence_id: int, stream: TokenStream) -> None:
        self._worker.send(Submit(sequence_id, stream.request, stream.progress()))

    def _try_next(self) -> None:
        if self._state == "ready" and (sequence_id := self._quarantine.next_trial()) is not None:
            self._hand_over(sequence_id, self._streams[sequence_id])

    def _clear(self, sequence_id: int) -> None:
        self._quarantine.clear(sequence_id)
        self._try_next()

    # ---- what the worker says -----------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event:
            case Stepped(news, stats):
                self._stats = stats
                self._speed.count(sum(output.token_id is not None for _, output in news))
                for sequence_id, output in news:
                    self._deliver(sequence_id, output)
            case Loading(done, total):
                if self._info is None:
                    self.on_progress(done, total)
            case Ready(info):
                self._resume(info)
            case Logged(level, message):
                logger.log(level, "%s", message)
            case Refused(reason):
                if self._info is None:
                    self.refusal = reason
                else:
                    logger.error("the model cannot be loaded again: %s", reason)

    def _deliver(self, sequence_id: int, output: TokenOutput) -> None:
        stream = self._streams.get(sequence_id)  # None: let go of, while this was on its way
        if stream is None:
            return
        if output.token_id is not None and output.index < len(stream.token_ids):
            return  # it was on its way when the stream was paused, and came, and now comes again
        self._num_deaths = 0
        if output.finish_reason is not None:
            del self._streams[sequence_id]
            self._paused.discard(sequence_id)
        stream.put(output)
        if stream.is_behind and sequence_id not in self._paused:
            # Its reader is far behind: its place and its blocks are for others until it has caught up.
            self._paused.add(sequence_id)
            self._worker.send(Abort(sequence_id))
        self._clear(sequence_id)

    def _end(self, state: str, reason: str) -> None:
        """No more tokens will come: every stream ends with an error."""
        self._state = state
        self._stats = EngineStats()
        self._settled.set()
        self.end_streams(reason)
