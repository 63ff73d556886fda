"""Sequence: the engine's view of one generation. Knows its tokens and its blocks, not who else there is."""

from __future__ import annotations

from model.interface import SampleRequest, StepItem
from server.engine.prompt_lookup import PromptLookup
from server.engine.request import GenerationRequest, Progress, Timings


class Sequence:
    """Known tokens (prompt and generated) and how many of them are computed; a step closes the gap."""

    def __init__(self, sequence_id: int, request: GenerationRequest, progress: Progress) -> None:
        self.id = sequence_id
        self.request = request
        self.rank = (-request.priority, sequence_id)  # smaller runs first: ids are given in order of arrival
        self.token_ids = [*request.prompt_ids, *progress.token_ids]
        self.num_prompt_tokens = len(request.prompt_ids)
        self.num_computed_tokens = 0
        self.block_table: list[int] = []
        self.prompt_logprobs: list[float] = []
        self.leader_id: int | None = None  # set while it waits for that sequence to compute their prompt

        self.arrival_s = progress.arrival_s
        self.num_cached_tokens = 0
        self.first_step_s: float | None = None
        self.first_token_s: float | None = None
        if progress.timings is not None:
            self.num_cached_tokens = progress.timings.cached_tokens
            self.first_step_s = progress.arrival_s + progress.timings.queue_s
            self.first_token_s = self.first_step_s + progress.timings.prefill_s
        self.lookup = PromptLookup()
        self._sample_request: SampleRequest | None = None

    @property
    def num_tokens(self) -> int:
        """Known tokens."""
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Known tokens past the prompt."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether every prompt position must be computed, since its log-probability is still to be told."""
        return self.request.wants_prompt_logprobs and not self.num_generated_tokens

    def step_item(self, num_tokens: int) -> StepItem:
        """The next `num_tokens` tokens to compute; the item samples if they reach the last known token."""
        start, end = self.num_computed_tokens, self.num_computed_tokens + num_tokens
        return StepItem(
            token_ids=self.token_ids[start:end],
            start=start,
            block_table=self.block_table,
            sample=self._sampling() if end == len(self.token_ids) else None,
            target_ids=self.token_ids[start + 1 : end + 1] if self.needs_prompt_logits else (),
        )

    def draft(self, limit: int) -> list[int]:
        """Guess at most `limit` tokens to come. Every row with them can be sampled by the same wish."""
        num_generated, request = self.num_generated_tokens, self.request
        limit = min(limit, request.max_new_tokens - num_generated - 1)  # none beyond the last token but one
        if num_generated < request.min_new_tokens:  # until then there are forbidden ids
            limit = min(limit, request.min_new_tokens - num_generated - 1)
        return self.lookup.draft(self.token_ids, limit)

    def forget_computed(self) -> None:
        """Begin anew, for want of blocks. By promise 1 computing it again changes nothing but time."""
        self.num_computed_tokens = 0
        if self.needs_prompt_logits:
            self.prompt_logprobs.clear()

    def timings(self, now_s: float) -> Timings:
        """Where the time went until now, after the first token."""
        first_step_s = self.arrival_s if self.first_step_s is None else self.first_step_s
        first_token_s = now_s if self.first_token_s is None else self.first_token_s
        return Timings(
            queue_s=first_step_s - self.arrival_s,
            prefill_s=first_token_s - first_step_s,
            decode_s=now_s - first_token_s,
            cached_tokens=self.num_cached_tokens,
        )

    def _sampling(self) -> SampleRequest:
        """The same object until the forbidden ids change: it sees the tokens as they grow."""
        is_too_short = self.num_generated_tokens < self.request.min_new_tokens
        forbidden_ids = self.request.end_ids if is_too_short else ()
        if self._sample_request is None or self._sample_request.forbidden_ids is not forbidden_ids:
            self._sample_request = SampleRequest(
                params=self.request.sampling,
                token_ids=self.token_ids,
                num_prompt_tokens=self.num_prompt_tokens,
                choice=self.request.choice,
                forbidden_ids=forbidden_ids,
            )
        return self._sample_request
