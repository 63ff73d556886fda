"""The shapes of the wire: what an answer holds, field by field. What a body may hold is in schemas.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """What a client reads."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ErrorAnswer(Answer):
    """Any refusal or failure."""

    error: str
    error_type: str


class Token(Answer):
    """A generated token, with the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float
    special: bool


FinishReason = Literal["length", "eos_token", "stop_sequence", "deadline"]


class PrefillToken(Answer):
    """A prompt token; the first has no probability."""

    id: int
    text: str
    logprob: float | None


class AnswerTimings(Answer):
    """Where the time went, in milliseconds, by the engine's clock."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    cached_tokens: int


class StreamDetails(Answer):
    """How an answer ended."""

    finish_reason: FinishReason
    generated_tokens: int
    input_length: int
    seed: int | None = Field(description="null for greedy")
    parameters: dict[str, Any] = Field(description="every parameter as it took effect")
    parameters_from: dict[str, Literal["request", "model", "server"]] = Field(
        description="whose word each of them is"
    )
    fingerprint: str = Field(
        description="of the model's files, its formats, the kernels and the versions: what the bits depend on"
    )
    timings: AnswerTimings


class OtherAnswer(Answer):
    """One more answer to the same prompt."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] = Field(default=[], description="only when asked for")


class Details(StreamDetails):
    """The same, and every token."""

    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] = Field(default=[], description="only when asked for")
    best_of_sequences: list[OtherAnswer] = Field(default=[], description="the other answers, if any")


class GenerateAnswer(Answer):
    """An answer without a stream; `details` only when asked for."""

    generated_text: str
    details: Details | None = None


class StreamEvent(Answer):
    """One event of a stream; the last one carries the text and the details."""

    index: int
    token: Token
    top_tokens: list[Token] = Field(default=[], description="only when asked for")
    generated_text: str | None
    details: StreamDetails | None


class TextToken(Answer):
    """A token and the characters of the text that it covers."""

    id: int
    text: str
    start: int
    stop: int


class DetokenizeAnswer(Answer):
    """The joined text."""

    text: str


class StatusAnswer(Answer):
    """What a health probe hears."""

    status: str
