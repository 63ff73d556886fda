"""What a validated body means for this model: the engine's request, and how its answer is to be told.

Here is every rule that needs the vocabulary, the context or two fields at once. Knows no HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.sampling.sampling_params import SamplingParams
from server.api.front import Front
from server.api.precedence import Origin, choose_length, choose_sampling
from server.api.schemas import GenerateBody, GenerateParameters, TextParameters
from server.engine.request import GenerationRequest
from server.errors import ValidationFailed
from server.text.encoder import EncodeError

_LONGEST_MS = 10**10  # four months: no answer takes that long, and a timer cannot count for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted wish: what the engine is asked, and what its answer is told with."""

    request: GenerationRequest
    prefix: str  # what `generated_text` begins with
    stop: tuple[str, ...]
    include_stop_str: bool
    num_choices: int  # answers to generate
    num_told: int
    is_ranked: bool  # whether the best of them are told, or the first
    deadline_s: float | None  # from arrival; then the answer ends with what there is
    wants_details: bool
    is_stream: bool
    parameters: Mapping[str, object]  # every parameter as it took effect
    parameters_from: Mapping[str, Origin]  # whose word each of them is

    @property
    def seed(self) -> int | None:
        """The seed of the draws; None for greedy, which draws nothing."""
        return None if self.request.sampling.is_greedy else self.request.sampling.seed


def translate(body: GenerateBody, front: Front, *, is_stream: bool, tenant: int = 0) -> Job:
    """Return the job that `body` asks for; raises `ValidationFailed`, or `Unavailable` without a model."""
    info = front.model_info()
    wish: TextParameters = body.parameters or GenerateParameters()
    if wish.decoder_input_details and is_stream:
        raise ValidationFailed("parameters.decoder_input_details cannot be had in a stream")
    check_ids("parameters.stop_token_ids", wish.stop_token_ids or (), info.vocab_size)
    sampling, origins = choose_sampling(wish, front.defaults, info.vocab_size)
    num_choices = _num_choices(wish, sampling, is_stream, front.settings.max_concurrent_requests)

    name = "prompt" if body.inputs is None else "inputs"
    given: str | list[int] = getattr(body, name)
    prompt_ids = _prompt_ids(name, given, wish.truncate, front)
    room = _room(name, len(prompt_ids), info.max_total_tokens)
    wanted, origins["max_new_tokens"] = choose_length(
        wish.max_new_tokens, front.defaults.max_new_tokens, room
    )
    max_new_tokens = _max_new_tokens(wanted, room, len(prompt_ids), info.max_total_tokens)
    least, origins["min_new_tokens"] = choose_length(
        wish.min_new_tokens, front.defaults.min_new_tokens, max_new_tokens
    )
    min_new_tokens = least or 0
    if min_new_tokens > max_new_tokens:
        raise ValidationFailed(
            f"parameters.min_new_tokens is {_cut(min_new_tokens)}, max_new_tokens allows {max_new_tokens}"
        )
    own_ids = () if wish.ignore_eos else info.end_token_ids
    request = GenerationRequest(
        prompt_ids=prompt_ids,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        end_ids=own_ids if wish.stop_token_ids is None else tuple(wish.stop_token_ids),
        priority=wish.priority or 0,
        tenant=tenant,
        wants_prompt_logprobs=bool(wish.decoder_input_details),
    )
    prefix = (
        (given if isinstance(given, str) else front.tokenizer.decode(given)) if wish.return_full_text else ""
    )
    include_stop_str = wish.include_stop_str is not False
    parameters = _as_it_took_effect(wish, request, include_stop_str)
    return Job(
        request=request,
        prefix=prefix,
        stop=tuple(wish.stop or ()),
        include_stop_str=include_stop_str,
        num_choices=num_choices,
        num_told=wish.n or num_choices,
        is_ranked=(wish.best_of or 1) > 1,
        deadline_s=None if wish.deadline_ms is None else min(wish.deadline_ms, _LONGEST_MS) / 1000,
        wants_details=bool(wish.details),
        is_stream=is_stream,
        parameters=parameters,
        parameters_from={name: _origin(name, wish, origins) for name in parameters},
    )


def _num_choices(wish: TextParameters, sampling: SamplingParams, is_stream: bool, limit: int) -> int:
    """How many answers to generate; no more than can be under way."""
    n, best_of = wish.n or 1, wish.best_of or 1
    if is_stream and (n > 1 or best_of > 1):
        name = "n" if n > 1 else "best_of"
        raise ValidationFailed(f"parameters.{name} is {max(n, best_of)}: a stream tells one answer")
    if n > 1 and not wish.details:
        raise ValidationFailed(f"parameters.n is {n}: it needs parameters.details, where the others are told")
    if best_of > 1 and getattr(wish, "seed", None) is not None:
        raise ValidationFailed("parameters.best_of cannot be had with parameters.seed; parameters.n can")
    if best_of > 1 and sampling.is_greedy:
        raise ValidationFailed(f"parameters.best_of is {best_of}: greedy answers are all the same")
    if wish.best_of is not None and best_of < n:
        raise ValidationFailed(f"parameters.best_of is {best_of}, it must be at least parameters.n, {n}")
    if max(n, best_of) > limit:
        raise ValidationFailed(
            f"parameters.n or best_of is {max(n, best_of)}: at most {limit} can be under way"
        )
    return max(n, best_of)


def _prompt_ids(name: str, given: str | list[int], truncate: int | None, front: Front) -> tuple[int, ...]:
    info = front.model_info()
    if isinstance(given, str):
        if truncate is None:  # a text that cannot fit is not worth a second of encoding
            _room(name, front.tokenizer.min_num_tokens(given), info.max_total_tokens, "at least ")
        try:
            ids = front.tokenizer.encode(given)
        except EncodeError as error:
            raise ValidationFailed(f"{name} {error}") from error
        _check_embeddings(name, ids, info.vocab_size)
    else:
        ids = given
        check_ids(name, ids, info.vocab_size)
    if not ids:
        raise ValidationFailed(f"{name} is empty: it must have at least one token")
    return tuple(ids[-truncate:] if truncate else ids)


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise `ValidationFailed` for the first of `ids` that is outside the vocabulary."""
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            raise ValidationFailed(f"{name}[{index}] is {_cut(token_id)}, it must be 0 to {vocab_size - 1}")


def _check_embeddings(name: str, ids: Sequence[int], vocab_size: int) -> None:
    # A tokenizer may have tokens that were added after its model was made.
    if (largest := max(ids, default=0)) >= vocab_size:
        raise ValidationFailed(
            f"{name} contains a token that the model has no embedding for: its id is {largest}, "
            f"it must be 0 to {vocab_size - 1}"
        )


def _cut(number: int) -> str:
    return str(number) if number.bit_length() <= 64 else f"an integer of {number.bit_length()} bits"


def _room(name: str, num_prompt_tokens: int, max_total: int, at_least: str = "") -> int:
    room = max_total - num_prompt_tokens
    if room < 1:
        raise ValidationFailed(
            f"{name} has {at_least}{num_prompt_tokens} tokens, at most {max_total - 1} leave room for an "
            "answer: parameters.truncate keeps the last of them"
        )
    return room


def _max_new_tokens(wanted: int | None, room: int, num_prompt_tokens: int, max_total: int) -> int:
    if wanted is not None and wanted > room:
        raise ValidationFailed(
            f"parameters.max_new_tokens is {_cut(wanted)}, at most {room} fit: the prompt has "
            f"{num_prompt_tokens} tokens, and the context {max_total}"
        )
    return wanted or room


def _origin(name: str, wish: TextParameters, origins: Mapping[str, Origin]) -> Origin:
    if name in origins:
        return origins[name]
    if getattr(wish, name) is not None or (name == "stop_token_ids" and wish.ignore_eos):
        return "request"
    return "model" if name == "stop_token_ids" else "server"


def _as_it_took_effect(
    wish: TextParameters, request: GenerationRequest, include_stop_str: bool
) -> dict[str, object]:
    sampling = dataclasses.asdict(request.sampling)
    is_greedy = request.sampling.is_greedy
    return {
        **sampling,
        "logit_bias": {str(token_id): bias for token_id, bias in request.sampling.logit_bias},
        "seed": None if is_greedy else request.sampling.seed,
        "do_sample": not is_greedy,
        "max_new_tokens": request.max_new_tokens,
        "min_new_tokens": request.min_new_tokens,
        "stop": wish.stop or [],
        "include_stop_str": include_stop_str,
        "stop_token_ids": list(request.end_ids),
        "ignore_eos": bool(wish.ignore_eos),
        "n": wish.n or 1,
        "best_of": max(wish.n or 1, wish.best_of or 1),
        "return_full_text": bool(wish.return_full_text),
        "truncate": wish.truncate,
        "details": bool(wish.details),
        "decoder_input_details": request.wants_prompt_logprobs,
        "grammar": None,
        "deadline_ms": wish.deadline_ms,
        "priority": request.priority,
        "watermark": False,
        "adapter_id": None,
    }
