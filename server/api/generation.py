"""One answer as it grows: the engine's outputs go in, the wire's tokens come out. Does no waiting itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from server.api.front import Front
from server.api.translate import Job
from server.engine.client import TokenStream
from server.engine.request import FinishReason, Timings, TokenOutput
from server.errors import ApiError, GenerationFailed, Overloaded
from server.text.detokenizer import StreamText, TokenText

_RETRY_AFTER_S: Final = 1.0
_WIRE_REASON: Final[Mapping[FinishReason, str]] = {
    "length": "length",
    "stop": "eos_token",
    "deadline": "deadline",
}


class Generation:
    """An accepted job, its stream, and what has come of it.

    The stream is closed here at the end of the answer; who made this closes it in every other case.
    """

    def __init__(self, job: Job, stream: TokenStream, front: Front, arrived_s: float) -> None:
        self.job = job
        self.stream = stream
        self.finish_reason: str | None = None  # set with the last token
        self.error: ApiError | None = None  # set in place of it, if the generation failed
        self._tokenizer = front.tokenizer
        self._metrics = front.metrics
        self._text = StreamText(front.tokenizer, job.request.prompt_ids, job.stop, job.include_stop_str)
        self._held: deque[TokenOutput] = deque()  # given to `_text`, and not yet told by it
        self._last: list[dict[str, Any]] = []  # held back while it may turn out to be the last
        self._num_tokens = 0
        self._sum_logprobs = 0.0
        self._timings = Timings(queue_s=0.0, prefill_s=0.0, decode_s=0.0)  # every token brings newer ones
        self._prompt_logprobs: tuple[float, ...] = ()
        self._arrived_s = self._last_s = arrived_s
        self._fingerprint = front.model_info().answer_fingerprint(front.version)
        self._metrics.accepted(len(job.request.prompt_ids))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def generated_text(self) -> str:
        """The text so far; whole when the generation is over."""
        return self.job.prefix + self._text.text

    def feed(self, outputs: list[TokenOutput]) -> list[dict[str, Any]]:
        """Take what the engine sent; return the tokens that are ready.

        A token has its `top_tokens` beside it if they were asked for. What comes after the end is dropped.
        """
        num_before = self._num_tokens
        ready: list[TokenText] = []
        for output in outputs:
            ready += self._take(output)
            if self.is_over:
                break
        if self.is_over:
            self.stream.close()  # the engine may not know: a stop string is found here
        self._observe(self._num_tokens - num_before)
        told = self._last + [self._wire_token(text) for text in ready]
        # A deadline ends an answer without a token of its own, and the last event must have one.
        self._last = told[-1:] if self.job.deadline_s is not None and not self.is_over else []
        return told[: len(told) - len(self._last)]

    def fail(self, error: ApiError) -> None:
        """End the answer with `error`."""
        self.error = error

    def details(self) -> dict[str, Any]:
        """Return the details of an answer that is over, without its tokens."""
        return {
            "finish_reason": self.finish_reason,
            "generated_tokens": self._num_tokens,
            "input_length": len(self.job.request.prompt_ids),
            "seed": self.job.seed,
            "parameters": self.job.parameters,
            "parameters_from": self.job.parameters_from,
            "fingerprint": self._fingerprint,
            "timings": self._wire_timings(),
        }

    @property
    def mean_logprob(self) -> float:
        """By which the best of several answers is chosen."""
        return self._sum_logprobs / max(1, self._num_tokens)

    def every_token(self, tokens: list[dict[str, Any]], prefill: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields that tell all tokens: the prompt's, and those that `feed` returned."""
        told: dict[str, Any] = {"prefill": prefill, "tokens": [token["token"] for token in tokens]}
        if self.job.request.sampling.top_n_tokens:
            told["top_tokens"] = [token["top_tokens"] for token in tokens]
        return told

    def as_other(self, tokens: list[dict[str, Any]], prefill: list[dict[str, Any]]) -> dict[str, Any]:
        """Return this answer as one of several to the same prompt."""
        return {
            "generated_text": self.generated_text,
            "finish_reason": self.finish_reason,
            "generated_tokens": self._num_tokens,
            "seed": self.job.seed,
            **self.every_token(tokens, prefill),
        }

    def headers(self) -> dict[str, str]:
        """Return TGI's headers of an answer that is over: times in milliseconds, the first in seconds."""
        total_ms = (self._last_s - self._arrived_s) * 1000
        timings = self._timings
        inference_ms = (timings.prefill_s + timings.decode_s) * 1000
        return {
            "x-compute-time": f"{total_ms / 1000:.6f}",
            "x-total-time": f"{total_ms:.0f}",
            "x-queue-time": f"{timings.queue_s * 1000:.0f}",
            "x-inference-time": f"{inference_ms:.0f}",
            "x-time-per-token": f"{inference_ms / max(1, self._num_tokens):.0f}",
            "x-prompt-tokens": str(len(self.job.request.prompt_ids)),
            "x-generated-tokens": str(self._num_tokens),
        }

    def prefill(self) -> list[dict[str, Any]]:
        """Return the prompt's tokens if their log-probabilities were asked for, of the first choice."""
        if not self.job.request.wants_prompt_logprobs:
            return []
        logprobs = (None, *self._prompt_logprobs)
        return [
            {"id": token_id, "text": self._tokenizer.token_text(token_id), "logprob": logprob}
            for token_id, logprob in zip(self.job.request.prompt_ids, logprobs, strict=True)
        ]

    def _take(self, output: TokenOutput) -> list[TokenText]:
        self._timings = output.timings or self._timings
        self._prompt_logprobs = output.prompt_logprobs or self._prompt_logprobs
        if output.finish_reason in ("error", "abort"):
            self.fail(GenerationFailed(output.error or "the generation was ended by the server"))
            return []
        if output.finish_reason == "deadline" and not self._num_tokens:
            self.fail(Overloaded("parameters.deadline_ms passed before the first token", _RETRY_AFTER_S))
            return []
        ready: list[TokenText] = []
        if output.token_id is not None:
            self._num_tokens += 1
            self._sum_logprobs += output.logprob
            self._held.append(output)
            ready = self._text.push(output.token_id)
        if self._text.is_stopped:
            self.finish_reason = "stop_sequence"
        elif output.finish_reason is not None:
            self.finish_reason = _WIRE_REASON[output.finish_reason]
        if self.finish_reason is not None:
            ready += self._text.finish()
        return ready

    def _observe(self, num_tokens: int) -> None:
        now_s = time.monotonic()
        if num_tokens and self._num_tokens == num_tokens:
            self._metrics.first_tokens(num_tokens, now_s - self._arrived_s)
        elif num_tokens:
            self._metrics.next_tokens(num_tokens, now_s - self._last_s)
        self._last_s = now_s
        if self.finish_reason is not None:
            self._metrics.finished(self.finish_reason, self._num_tokens, now_s - self._arrived_s)
            self._metrics.queued(self._timings.queue_s, self._timings.cached_tokens)

    def _wire_token(self, text: TokenText) -> dict[str, Any]:
        output = self._held.popleft()
        token = {
            "id": output.token_id,
            "text": text.text,
            "logprob": output.logprob,
            "special": text.is_special,
        }
        if not self.job.request.sampling.top_n_tokens:
            return {"token": token}
        top = [
            {
                "id": token_id,
                "text": self._tokenizer.token_text(token_id),
                "logprob": logprob,
                "special": self._tokenizer.is_special(token_id),
            }
            for token_id, logprob in output.top
        ]
        return {"token": token, "top_tokens": top}

    def _wire_timings(self) -> dict[str, Any]:
        return {
            "queue_ms": self._timings.queue_s * 1000,
            "prefill_ms": self._timings.prefill_s * 1000,
            "decode_ms": self._timings.decode_s * 1000,
            "cached_tokens": self._timings.cached_tokens,
        }
