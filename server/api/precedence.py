"""Whose word counts for a parameter: the request's, then the model's, then the server's.

Decides from `generation_config.json` and a body how tokens are chosen, and says of each parameter where it
came from. Knows no prompt.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from model.sampling.sampling_params import SamplingParams
from server.api.schemas import SAMPLING_FIELDS, TextParameters
from server.errors import ValidationFailed
from server.generation_config import GenerationDefaults

Origin = Literal["request", "model", "server"]

_DRAWN_SEEDS = 2**53  # every JSON reader keeps integers below it

# What asks for a draw if `do_sample` does not say. A seed alone does not: it is harmless to greedy.
_ASKS_FOR_DRAW = ("temperature", "top_k", "top_p", "typical_p", "min_p")


def choose_sampling(
    wish: TextParameters, defaults: GenerationDefaults, vocab_size: int
) -> tuple[SamplingParams, dict[str, Origin]]:
    """Return how tokens are chosen, and whose word each of its parameters is; raises `ValidationFailed`.

    The model's default of a parameter counts where the request leaves it out and it has an effect: what only
    shapes a draw is no part of a greedy answer.
    """
    given: dict[str, Any] = {
        name: value for name in SAMPLING_FIELDS if (value := getattr(wish, name)) is not None
    }
    if wish.do_sample and given.get("temperature") == 0:
        raise ValidationFailed(
            "parameters.do_sample is true and parameters.temperature is 0, which is greedy"
        )
    draws, decider = _draws(wish.do_sample, given, defaults.do_sample)
    own: dict[str, Any] = {
        name: value
        for name, value in defaults.sampling.items()
        if name not in given and (draws or name not in _ASKS_FOR_DRAW)
    }
    if own.get("temperature") == 0:  # the model is greedy by itself, and the request is not
        del own["temperature"]
    origins: dict[str, Origin] = {
        **dict.fromkeys(SAMPLING_FIELDS, "server"),
        **dict.fromkeys(own, "model"),
        **dict.fromkeys(given, "request"),
        "do_sample": decider,
    }
    chosen = own | given
    if not draws:
        chosen["temperature"], origins["temperature"] = 0.0, decider
    _check(chosen, vocab_size)
    if "logit_bias" in chosen:
        bias = chosen["logit_bias"].items()
        chosen["logit_bias"] = tuple(sorted((int(key), float(value)) for key, value in bias))
    chosen.setdefault("seed", secrets.randbelow(_DRAWN_SEEDS))
    return SamplingParams(**chosen), origins


def choose_length(wanted: int | None, own: int | None, limit: int) -> tuple[int | None, Origin]:
    """Return how many tokens are wanted, None if nobody says it; what the model wants is cut to the limit."""
    if wanted is not None:
        return wanted, "request"
    return (None, "server") if own is None else (min(own, limit), "model")


def _draws(do_sample: bool | None, given: Mapping[str, Any], model_does: bool | None) -> tuple[bool, Origin]:
    """Whether tokens are drawn, and who decides it."""
    if do_sample:
        return True, "request"
    if "temperature" in given:
        return bool(given["temperature"]), "request"
    neutral = SamplingParams()
    if any(given.get(name, getattr(neutral, name)) != getattr(neutral, name) for name in _ASKS_FOR_DRAW):
        return True, "request"
    if do_sample is not None:
        return False, "request"
    return (False, "server") if model_does is None else (model_does, "model")


def _check(chosen: Mapping[str, Any], vocab_size: int) -> None:
    if chosen.get("top_n_tokens", 0) > vocab_size:
        raise ValidationFailed(
            f"parameters.top_n_tokens is {chosen['top_n_tokens']}, at most the vocabulary's {vocab_size}"
        )
    for token_id in sorted(map(int, chosen.get("logit_bias", ()))):
        if token_id >= vocab_size:
            raise ValidationFailed(
                f"parameters.logit_bias has id {token_id}, it must be 0 to {vocab_size - 1}"
            )
