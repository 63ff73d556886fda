"""Sequence: the engine's view of one generation. Knows its tokens and its blocks, not who else there is."""

from __future__ import annotations

from model.interface import SampleRequest, StepItem
from server.engine.request import GenerationRequest, Timings


class Sequence:
    """Known tokens (prompt and generated) and how many of them are computed; a step closes the gap."""

    def __init__(self, sequence_id: int, request: GenerationRequest, arrival_s: float) -> None:
        self.id = sequence_id
        self.request = request
        self.token_ids = list(request.prompt_ids)
        self.num_prompt_tokens = len(request.prompt_ids)
        self.num_computed_tokens = 0
        self.block_table: list[int] = []
        self.prompt_logprobs: list[float] = []

        self.arrival_s = arrival_s
        self.first_step_s: float | None = None
        self.first_token_s: float | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller runs first: by priority, then by arrival (ids are given in order of arrival)."""
        return (-self.request.priority, self.id)

    @property
    def num_tokens(self) -> int:
        """Known tokens."""
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Known tokens past the prompt."""
        return len(self.token_ids) - self.num_prompt_tokens

    def step_item(self, num_tokens: int) -> StepItem:
        """The next `num_tokens` tokens to compute; the item samples if they reach the last known token."""
        start, end = self.num_computed_tokens, self.num_computed_tokens + num_tokens
        return StepItem(
            token_ids=self.token_ids[start:end],
            start=start,
            block_table=self.block_table,
            sample=self._sample_request() if end == self.num_tokens else None,
            target_ids=self._target_ids(start, end),
        )

    def timings(self, now_s: float) -> Timings:
        """Where the time went until now, after the first token."""
        first_step_s = self.arrival_s if self.first_step_s is None else self.first_step_s
        first_token_s = now_s if self.first_token_s is None else self.first_token_s
        return Timings(
            queue_s=first_step_s - self.arrival_s,
            prefill_s=first_token_s - first_step_s,
            decode_s=now_s - first_token_s,
        )

    def _sample_request(self) -> SampleRequest:
        request = self.request
        is_too_short = self.num_generated_tokens < request.min_new_tokens
        return SampleRequest(
            params=request.sampling,
            token_ids=self.token_ids,
            num_prompt_tokens=self.num_prompt_tokens,
            forbidden_ids=request.end_ids if is_too_short else (),
        )

    def _target_ids(self, start: int, end: int) -> list[int]:
        """The prompt tokens after those from start to end, while their log-probabilities are wanted."""
        if not self.request.wants_prompt_logprobs or self.num_generated_tokens:
            return []
        return self.token_ids[start + 1 : end + 1]
