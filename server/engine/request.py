"""What crosses between the front and the engine: a request, and what comes back for each token.

Plain integers and floats; no text, no sockets.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from model.sampling.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error", "deadline"]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation. Validated by the front: the engine trusts its bounds."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    min_new_tokens: int = 0  # no end id may be chosen before this many tokens
    end_ids: tuple[int, ...] = ()  # choosing one of these ends the answer
    priority: int = 0  # larger runs first
    tenant: int = 0  # whose it is: tenants take turns, and share no cached prefix
    choice: int = 0  # which of several answers to one prompt this is
    wants_prompt_logprobs: bool = False


def choices_of(request: GenerationRequest, num_choices: int) -> list[GenerationRequest]:
    """The requests for so many answers to one prompt. The first tells of the prompt for all of them."""
    others = (
        msgspec.structs.replace(request, choice=choice, wants_prompt_logprobs=False)
        for choice in range(1, num_choices)
    )
    return [request, *others]


class Timings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where one generation's time went, by the engine's clock, in seconds."""

    queue_s: float  # from arrival to the first step that held it
    prefill_s: float  # from there to the first token
    decode_s: float  # from there to the last
    cached_tokens: int = 0  # prompt tokens found in the prefix cache


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a generation had come, for an engine that is to go on with it."""

    arrival_s: float  # by the machine's monotonic clock, common to all of its processes
    token_ids: tuple[int, ...] = ()  # generated so far
    timings: Timings | None = None  # until the last of them


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A snapshot of the engine, for metrics. Counts since its start, or of the moment."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # the cached ones, too: they can be had
    num_cached_blocks: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0  # computed in all steps
    num_preemptions: int = 0
    num_draft_tokens: int = 0  # guesses computed
    num_accepted_tokens: int = 0  # guesses that were right
    num_restarts: int = 0  # of its worker

    def after(self, past: EngineStats) -> EngineStats:
        """The same, with what the engines before it had counted."""
        return msgspec.structs.replace(
            self,
            num_steps=past.num_steps + self.num_steps,
            num_step_tokens=past.num_step_tokens + self.num_step_tokens,
            num_preemptions=past.num_preemptions + self.num_preemptions,
            num_draft_tokens=past.num_draft_tokens + self.num_draft_tokens,
            num_accepted_tokens=past.num_accepted_tokens + self.num_accepted_tokens,
            num_restarts=past.num_restarts,
        )


class TokenOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One token of one generation, or its end. The last output of a stream has a `finish_reason`.

    A `finish_reason` of `stop` or `length` comes with the last token. `abort`, `error` and `deadline`
    may come without one: then `token_id` is None.
    """

    token_id: int | None
    index: int = 0  # of the token in its answer
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: tuple[float, ...] = ()  # with the first token, if asked: of prompt_ids[1:], in order
    finish_reason: FinishReason | None = None
    error: str | None = None
    timings: Timings | None = None  # until this token; None without one
