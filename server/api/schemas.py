"""The shapes of the wire: what a body may hold, field by field. What an answer holds is in answers.py.

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
MAX_CHOICES = 8
MAX_TOKENIZED = 65_536  # characters or ids: an answer is up to fifty times as long as its body


class Body(BaseModel):
    """What a client sends. Nothing is converted: a boolean is no integer, `"1"` no number, `1.0` no count."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Count = Annotated[int, Interval(ge=1)]
TokenId = Annotated[int, Interval(ge=0)]
Choices = Annotated[int, Interval(ge=1, le=MAX_CHOICES)]
StopString = Annotated[str, Len(1, 256)]
DecimalId = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]


class Grammar(Body):
    """A shape that the answer must have."""

    type: Literal["json", "json_schema", "regex", "choice", "lark"]
    value: Any


class TextParameters(Body):
    """Everything under `parameters` but the sampling fields."""

    max_new_tokens: Count | None = Field(
        default=None, description="absent: the model's own, or what fits the context"
    )
    do_sample: bool | None = Field(
        default=None,
        description="if no sampling field asks for a draw: false is greedy, absent the model's own",
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
    n: Choices | None = Field(
        default=None, description="answers to tell; above 1 with `details`, and not in a stream"
    )
    best_of: Choices | None = Field(
        default=None, description="answers to choose from; above 1 not with `seed`, nor in a stream"
    )
    return_full_text: bool | None = Field(default=None, description="begin `generated_text` with the prompt")
    truncate: Count | None = Field(default=None, description="keep the last so many prompt tokens")
    details: bool | None = Field(default=None, description="tell every token; a stream always does")
    decoder_input_details: bool | None = Field(
        default=None, description="log-probabilities of the prompt; needs `details`, and no stream"
    )
    grammar: Grammar | None = Field(default=None, description="not supported yet")
    deadline_ms: Count | None = Field(
        default=None, description="from arrival: then the answer ends with what there is"
    )
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
