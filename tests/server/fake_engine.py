"""An engine client without a model: it answers every prompt with the prompt's own tokens, over and over."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import count

from model.interface import MemoryPlan, ModelInfo
from server.engine.client import (
    EngineOverloaded,
    EngineStatus,
    EngineUnavailable,
    TokenStream,
)
from server.engine.request import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    Timings,
    TokenOutput,
    choices_of,
)

END_ID = 256
MEMORY = MemoryPlan(
    base_bytes=100, weight_bytes=4, kv_bytes_per_token=8, kv_cache_tokens=1024, step_bytes=10,
    free_bytes=10**6, num_sequences=((512, 2),),
)  # fmt: skip
INFO = ModelInfo(
    model_id="fake", model_type="fake", dtype="float32", quantization=None, device="cpu", kernels="none",
    library="lib", fingerprint="0123456789abcdef" * 4, num_parameters=1, vocab_size=259, max_positions=512,
    block_size=16, num_blocks=64, memory=MEMORY, end_token_ids=(END_ID,),
)  # fmt: skip


@dataclasses.dataclass
class Behaviour:
    """How the engine behaves; a test changes it while the server runs."""

    delay_s: float = 0.0  # before each token
    end_after: int | None = None  # the model's own end token comes as this many-th token
    fail_after: int | None = None  # tokens before the generation fails
    is_overloaded: bool = False
    is_unavailable: bool = False
    is_ready: bool = True
    is_live: bool = True


class FakeEngine:
    """Keeps every request, and which streams were let go of before their end."""

    def __init__(self) -> None:
        self.info: ModelInfo | None = INFO
        self.behaviour = Behaviour()
        self.requests: list[GenerationRequest] = []
        self.live: set[int] = set()
        self.num_aborted = 0
        self._ids = count()

    def submit(self, request: GenerationRequest) -> TokenStream:
        if self.behaviour.is_overloaded:
            raise EngineOverloaded("the queue is full: 3 requests, the limit is 3", retry_after_s=6.2)
        if self.behaviour.is_unavailable:
            raise EngineUnavailable("the server cannot take requests: draining", retry_after_s=2.0)
        self.requests.append(request)
        stream_id = next(self._ids)
        self.live.add(stream_id)

        def on_close() -> None:
            if stream_id in self.live:
                self.live.discard(stream_id)
                self.num_aborted += 1
                task.cancel()

        stream = TokenStream(request, on_close)
        task = asyncio.get_running_loop().create_task(self._generate(request, stream, stream_id))
        return stream

    def submit_choices(self, request: GenerationRequest, num_choices: int) -> list[TokenStream]:
        return [self.submit(its_request) for its_request in choices_of(request, num_choices)]

    async def _generate(self, request: GenerationRequest, stream: TokenStream, stream_id: int) -> None:
        how = self.behaviour
        for index in range(request.max_new_tokens):
            await asyncio.sleep(how.delay_s)
            if index == how.fail_after:
                self.live.discard(stream_id)
                stream.put(TokenOutput(token_id=None, finish_reason="error", error="the numbers went wrong"))
                return
            token_id, reason = self._next(request, index)
            if reason is not None:
                self.live.discard(stream_id)
            wants_prompt = request.wants_prompt_logprobs and index == 0
            stream.put(
                TokenOutput(
                    token_id=token_id,
                    logprob=-(index + 1) / 8 / (1 + request.choice),
                    top=tuple((i, -float(i)) for i in range(request.sampling.top_n_tokens)),
                    prompt_logprobs=(-0.5,) * (len(request.prompt_ids) - 1) if wants_prompt else (),
                    finish_reason=reason,
                    timings=Timings(queue_s=0.001, prefill_s=0.002, decode_s=0.003),
                )
            )
            if reason is not None:
                return

    def _next(self, request: GenerationRequest, index: int) -> tuple[int, FinishReason | None]:
        if request.end_ids and self.behaviour.end_after == index + 1:
            return request.end_ids[0], "stop"
        is_last = index + 1 == request.max_new_tokens
        return request.prompt_ids[index % len(request.prompt_ids)], "length" if is_last else None

    def status(self) -> EngineStatus:
        how = self.behaviour
        return EngineStatus(how.is_live, how.is_ready, "ready" if how.is_ready else "loading")

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.live), num_blocks=64, num_free_blocks=48)

    async def start(self) -> None:
        """There is nothing to start."""

    def drain(self) -> None:
        self.behaviour.is_unavailable = True

    async def wait_until_idle(self) -> None:
        while self.live:
            await asyncio.sleep(0.01)

    def end_streams(self, reason: str) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        """There is nothing to stop."""
