"""generation_config.json: how a model wants its tokens chosen where a request does not say it.

Decides which of its fields count, and which would change an answer and so are refused by name. Knows
nothing of requests.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from annotated_types import Interval
from pydantic import ConfigDict, ValidationError, create_model

from model.sampling.sampling_params import SamplingParams
from server.errors import shown
from server.text.tokenizer_config import read_json

NAME = "generation_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "min_p", "repetition_penalty")
# What would change an answer and is not done here, with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        ("encoder_repetition_penalty", "guidance_scale", "num_beam_groups", "num_beams",
         "num_return_sequences"),
        (None, 1),
    ),
    **dict.fromkeys(
        ("diversity_penalty", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff", "min_length",
         "no_repeat_ngram_size", "penalty_alpha", "token_healing"),
        (None, 0),
    ),
    **dict.fromkeys(
        ("bad_words_ids", "begin_suppress_tokens", "constraints", "dola_layers",
         "exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id",
         "max_time", "sequence_bias", "stop_strings", "suppress_tokens", "top_h", "watermarking_config"),
        (None, [], {}),
    ),
}  # fmt: skip

# Where these stood before there was such a file; transformers still looks there if there is none.
_OLDER = "config.json"
_FIELDS_OF_OLDER = {*SAMPLING, "do_sample", *_UNSUPPORTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What the file says; what it leaves out is not here, and is for the server to decide."""

    do_sample: bool | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)  # fields of SamplingParams, by name
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Read the file, or what config.json has of it; raises `ValueError` naming field, value and limit.

    `max_length` is not read: the context is the limit of prompt and answer. Nor are the end tokens, which are
    the model's to read, and fields that only beam search, speed or the shape of transformers' own return
    value depend on.
    """
    path, fields = folder / NAME, {}
    if path.is_file():
        fields = read_json(path)
    elif (folder / _OLDER).is_file():
        path = folder / _OLDER
        fields = {name: value for name, value in read_json(path).items() if name in _FIELDS_OF_OLDER}
    for name, neutral in _UNSUPPORTED.items():
        if fields.get(name) not in neutral:
            raise ValueError(f"cannot load {path}: {name} is {shown(fields[name])}, which is not supported")
    try:
        read = _schema().model_validate(fields)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        reason = re.sub(r"^\w+ should", "it must", detail["msg"], count=1)
        raise ValueError(
            f"cannot load {path}: {detail['loc'][0]} is {shown(detail['input'])}: {reason}"
        ) from error
    known: dict[str, Any] = {name: value for name, value in dict(read).items() if value is not None}
    sampling = {name: known[name] for name in SAMPLING if name in known}
    if known.get("do_sample") and sampling.get("temperature") == 0:
        raise ValueError(f"cannot load {path}: do_sample is true and temperature is 0, which is greedy")
    return GenerationDefaults(
        do_sample=known.get("do_sample"),
        sampling=sampling,
        max_new_tokens=known.get("max_new_tokens"),
        min_new_tokens=known.get("min_new_tokens"),
    )


def _schema() -> Any:
    """The fields that count: the bounds of the sampling ones are those of `SamplingParams`."""
    hints = get_type_hints(SamplingParams, include_extras=True)
    names = {f.name for f in dataclasses.fields(SamplingParams)} & set(SAMPLING)
    kinds: dict[str, Any] = {name: hints[name] for name in names} | {
        "do_sample": bool,
        "max_new_tokens": Annotated[int, Interval(ge=1)],
        "min_new_tokens": Annotated[int, Interval(ge=0)],
    }
    optional: dict[str, Any] = {name: (kind | None, None) for name, kind in kinds.items()}
    config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
    return create_model("GenerationConfig", __config__=config, **optional)
