"""The shapes of the wire: what a body may hold, field by field, and what an answer holds.

The sampling fields and their bounds come from `SamplingParams`; a field added there appears here by itself.
Knows no model: what depends on the vocabulary or the context is checked in `translate.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Self, get_type_hints

from annotated_types import Interval, Len, MaxLen
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_validator,
)

from model.sampling.sampling_params import SamplingParams

SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))
MAX_STOP_STRINGS = 16
MAX_TOKENIZED = 65_536  # characters or ids: an answer is up to fifty times as long as its body


class Body(BaseModel):
    """What a client sends. Nothing is converted: a boolean is no integer, `"1"` no number, `1.0` no count."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Count = Annotated[int, Interval(ge=1)]
TokenId = Annotated[int, Interval(ge=0)]
StopString = Annotated[str, Len(1, 256)]
DecimalId = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]


class Grammar(Body):
    """A shape that the answer must have."""

    type: Literal["json", "json_schema", "regex", "choice", "lark"]
    value: Any


class TextParameters(Body):
    """Everything under `parameters` but the sampling fields."""

    max_new_tokens: Count | None = Field(default=None, description="absent: what fits the context")
    do_sample: bool | None = Field(
        default=None,
        description="absent or false: greedy, unless a sampling field asks for a draw, as in TGI",
    )
    stop: Annotated[list[StopString], MaxLen(MAX_STOP_STRINGS)] | None = Field(
        default=None, description="the first of these that is complete ends the answer"
    )
    include_stop_str: bool | None = Field(
        default=None, description="whether the answer keeps its stop string; absent: true"
    )
    stop_token_ids: Annotated[list[TokenId], MaxLen(128)] | None = Field(
        default=None, description="ids that end the answer; absent: the model's own end tokens"
    )
    ignore_eos: bool | None = Field(default=None, description="do not end at the model's own end tokens")
    min_new_tokens: TokenId | None = Field(default=None, description="no end token before this many")
    n: Annotated[int, Interval(ge=1, le=8)] | None = Field(
        default=None, description="more than 1 is not supported yet"
    )
    best_of: Annotated[int, Interval(ge=1, le=8)] | None = Field(
        default=None, description="more than 1 is not supported yet"
    )
    return_full_text: bool | None = Field(default=None, description="begin `generated_text` with the prompt")
    truncate: Count | None = Field(default=None, description="keep the last so many prompt tokens")
    details: bool | None = Field(default=None, description="tell every token; a stream always does")
    decoder_input_details: bool | None = Field(
        default=None, description="log-probabilities of the prompt; needs `details`, and no stream"
    )
    grammar: Grammar | None = Field(default=None, description="not supported yet")
    deadline_ms: Count | None = Field(default=None, description="not supported yet")
    priority: Annotated[int, Interval(ge=-100, le=100)] | None = Field(
        default=None, description="larger runs first"
    )
    watermark: bool | None = Field(default=None, description="true is not supported")
    adapter_id: str | None = Field(default=None, description="not supported")

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for what, is_asked in (
            ("watermark is not supported", self.watermark),
            ("adapter_id is not supported", self.adapter_id is not None),
            ("grammar is not supported yet", self.grammar is not None),
            ("deadline_ms is not supported yet", self.deadline_ms is not None),
            ("n above 1 is not supported yet", (self.n or 1) > 1),
            ("best_of above 1 is not supported yet", (self.best_of or 1) > 1),
        ):
            if is_asked:
                raise ValueError(f"parameters.{what}")
        if self.decoder_input_details and not self.details:
            raise ValueError("parameters.decoder_input_details needs parameters.details")
        return self


def _sampling_fields() -> dict[str, Any]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    # JSON has no integer keys: a map here, pairs there, and only the bound on their number is shared.
    bias = dict[DecimalId, Annotated[float, Interval(ge=-100.0, le=100.0)]]
    hints["logit_bias"] = Annotated[bias, *hints["logit_bias"].__metadata__]
    return {
        field.name: (hints[field.name] | None, Field(default=None, description=_meaning(hints[field.name])))
        for field in dataclasses.fields(SamplingParams)
    }


def _meaning(hint: Any) -> str:
    return next(note for note in hint.__metadata__ if isinstance(note, str))


GenerateParameters = create_model("GenerateParameters", __base__=TextParameters, **_sampling_fields())


def _text_or_ids(value: object) -> str | list[int]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    raise ValueError("it must be a string or a list of token ids")


Prompt = Annotated[
    str | list[int],
    PlainValidator(_text_or_ids),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 0}}]}
    ),
]


class GenerateBody(Body):
    """Exactly one of `inputs` and `prompt`, and what to do with it."""

    inputs: Prompt | None = Field(default=None, description="a text or its token ids")
    prompt: Prompt | None = Field(default=None, description="another name for `inputs`")
    parameters: GenerateParameters | None = None  # type: ignore[valid-type]  # made by create_model
    stream: bool | None = None

    @model_validator(mode="after")
    def _exactly_one_prompt(self) -> Self:
        if self.inputs is not None and self.prompt is not None:
            raise ValueError("inputs and prompt are two names for one field: give one of them")
        if self.inputs is None and self.prompt is None:
            raise ValueError("inputs is required")
        return self


class TokenizeBody(Body):
    """A text to cut into tokens."""

    inputs: Annotated[str, MaxLen(MAX_TOKENIZED)]
    add_special_tokens: bool | None = Field(default=None, description="absent: true")


class DetokenizeBody(Body):
    """Tokens to join into a text."""

    ids: Annotated[list[TokenId], FailFast(), MaxLen(MAX_TOKENIZED)]


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

    finish_reason: Literal["length", "eos_token", "stop_sequence", "deadline"]
    generated_tokens: int
    input_length: int
    seed: int | None = Field(description="null for greedy")
    parameters: dict[str, Any] = Field(description="every parameter as it took effect")
    timings: AnswerTimings


class Details(StreamDetails):
    """The same, and every token."""

    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] = Field(default=[], description="only when asked for")


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


class InfoAnswer(Answer):
    """The model, and the server's limits. Lengths in tokens."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model_id: str
    model_type: str
    model_dtype: str
    model_device_type: str
    quantization: str | None
    fingerprint: str = Field(description="SHA-256 over configuration, tokenizer and weights")
    kernels: str
    vocab_size: int
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    router: str
    version: str
