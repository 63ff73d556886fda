"""What is asked: requests of every kind, drawn from a seed, each with a canary in its prompt.

Two prompts have no stretch in common unless they are meant to share a prefix, so that a token that strayed
from one answer into another is seen. Knows neither sockets nor what the answers should be.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

import msgspec

OPENINGS: Final = (
    "Once upon a time, a little rabbit",
    "The king had three daughters, and the youngest",
    "“Who is there?” said the wolf",
    "In the depth of the forest",
    "Every morning the old miller",
    "Für die Königin, 'tis said, ",
)
STOPS: Final = (" the", "and", ". ", "”", "\n")
NUM_PREFIXES: Final = 4  # that several prompts share
PREFIX_TOKENS: Final = 160
TEXT_TOKENS: Final = 64  # more than any opening and canary have


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server says of itself, and how long an answer may be. Lengths in tokens."""

    vocab_size: int
    max_total_tokens: int
    max_new_tokens: int
    max_choices: int  # answers to one prompt


@dataclass(frozen=True)
class Wish:
    """One request. `key` tells wishes apart: the same key, the same answer."""

    inputs: str | list[int]
    parameters: dict[str, Any]

    @property
    def key(self) -> bytes:
        """All that the answer depends on."""
        return self.body(is_stream=False)

    @property
    def can_stream(self) -> bool:
        """A stream tells one answer, and not the prompt's log-probabilities."""
        return not self.parameters.get("n") and not self.parameters.get("decoder_input_details")

    def body(self, *, is_stream: bool) -> bytes:
        """The request's body."""
        parameters = self.parameters if is_stream else {"details": True, **self.parameters}
        return msgspec.json.encode({"inputs": self.inputs, "parameters": parameters, "stream": is_stream})


def mixed(seed: int, limits: Limits, count: int) -> list[Wish]:
    """So many, of every kind; fewer of the same seed are the first of them."""
    rng = random.Random(seed)
    prefixes = [_ids(rng, limits, PREFIX_TOKENS) for _ in range(NUM_PREFIXES)]
    return [_wish(rng, limits, prefixes) for _ in range(count)]


def steady(seed: int, limits: Limits, count: int, num_new_tokens: int, num_prompt_tokens: int) -> list[Wish]:
    """So many greedy ones of exactly this length, or as near as is allowed."""
    rng = random.Random(f"{seed} {num_new_tokens} {num_prompt_tokens}")
    room = limits.max_total_tokens - num_prompt_tokens
    parameters = {"max_new_tokens": min(num_new_tokens, limits.max_new_tokens, room), "ignore_eos": True}
    return [Wish(_ids(rng, limits, num_prompt_tokens), parameters) for _ in range(count)]


def _wish(rng: random.Random, limits: Limits, prefixes: list[list[int]]) -> Wish:
    room = limits.max_total_tokens
    kind = rng.choice(("text", "text", "ids", "long", "prefix"))
    inputs: str | list[int]
    if kind == "text":
        inputs = f"{rng.getrandbits(32):x}. {rng.choice(OPENINGS)}"
        room -= TEXT_TOKENS
    else:
        prefix = rng.choice(prefixes) if kind == "prefix" and room > 2 * PREFIX_TOKENS else []
        longest = room - len(prefix) - 1
        length = rng.randint(longest // 2, longest) if kind == "long" else rng.randint(1, longest // 4)
        inputs = prefix + _ids(rng, limits, length)
        room -= len(inputs)
    num_new_tokens = _length(rng, min(room, limits.max_new_tokens))
    return Wish(inputs, {"max_new_tokens": num_new_tokens, **_parameters(rng, limits, num_new_tokens)})


def _length(rng: random.Random, longest: int) -> int:
    """Most are short, some as long as can be."""
    return min(longest, int(2 * longest ** rng.random()))


def _parameters(rng: random.Random, limits: Limits, num_new_tokens: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if rng.random() < 0.7:
        parameters |= {"seed": rng.getrandbits(64), "temperature": rng.choice((0.3, 0.8, 1.0, 1.5))}
        parameters |= rng.choice(({}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}, {"typical_p": 0.9}))
        if limits.max_choices > 1 and rng.random() < 0.1:
            parameters["n"] = rng.randint(2, min(4, limits.max_choices))
    parameters |= rng.choice(
        ({}, {}, {"repetition_penalty": 1.3}, {"frequency_penalty": 0.7}, {"presence_penalty": -0.5})
    )
    for share, name, value in (
        (0.2, "logit_bias", {str(rng.randrange(limits.vocab_size)): rng.uniform(-5, 5)}),
        (0.3, "stop", rng.sample(STOPS, 2)),
        (0.3, "include_stop_str", False),
        (0.5, "ignore_eos", True),
        (0.1, "min_new_tokens", num_new_tokens // 2),
        (0.1, "top_n_tokens", rng.randint(1, 5)),
        (0.2, "logprobs_mode", "raw"),
        (0.2, "priority", rng.randint(-3, 3)),
    ):
        if rng.random() < share:
            parameters[name] = value
    return parameters


def _ids(rng: random.Random, limits: Limits, length: int) -> list[int]:
    """Any but 0, which ends a story. A few of these are canary enough: nobody else's begin so."""
    return rng.choices(range(1, limits.vocab_size), k=length)
