"""Scheduler: which sequences compute how many tokens in the next step, and what its result means for them.

Plain integers, no clock of its own, no model. There is no prefill phase and no decode phase: in every step
each sequence catches up with its known tokens, as far as one budget of tokens goes.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as List
from dataclasses import dataclass
from operator import attrgetter

from model.interface import StepItem, StepOutput
from server.engine.block_manager import BlockManager
from server.engine.request import FinishReason, TokenOutput
from server.engine.sequence import Sequence

_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The sequences of one step, and for each the item that the model gets."""

    sequences: list[Sequence]
    items: list[StepItem]


class Scheduler:
    """First come, first served within a priority, under a budget of tokens and of sequences."""

    def __init__(self, blocks: BlockManager, max_batch_tokens: int, max_num_seqs: int) -> None:
        if max_batch_tokens < max_num_seqs:
            raise ValueError(
                f"max_batch_tokens is {max_batch_tokens}, must be at least max_num_seqs, {max_num_seqs}: "
                "every running sequence needs a token in each step"
            )
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        self.max_num_seqs = max_num_seqs
        self.sequences: dict[int, Sequence] = {}  # all that are not finished
        self.running: list[Sequence] = []  # by rank; each owns blocks
        self.num_preemptions = 0
        self.waiting: list[Sequence] = []  # by rank; none owns a block

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.sequences[sequence.id] = sequence
        bisect.insort(self.waiting, sequence, key=_rank)

    def abort(self, sequence_id: int) -> None:
        """Forget a sequence at once, wherever it is; its blocks are free. Unknown ids are ignored."""
        sequence = self.sequences.get(sequence_id)
        if sequence is not None:
            self._finish(sequence)

    def schedule(self) -> StepPlan:
        """Choose the next step: the running ones by rank, then waiting ones while budget and blocks last."""
        chosen: list[tuple[Sequence, int]] = []
        budget = self.max_batch_tokens
        num_preemptions = self.num_preemptions

        position = 0
        while position < len(self.running) and budget:  # running may lose its tail to preemption meanwhile
            sequence = self.running[position]
            num_tokens = min(budget, sequence.num_tokens - sequence.num_computed_tokens)
            if self._make_room(sequence, num_tokens):
                chosen.append((sequence, num_tokens))
                budget -= num_tokens
                position += 1

        is_short = self.num_preemptions > num_preemptions  # then a newcomer would be the next to go
        while self.waiting and budget and not is_short and len(self.running) < self.max_num_seqs:
            newcomer = self.waiting[0]
            num_tokens = min(budget, newcomer.num_tokens)
            if not self.blocks.grow(newcomer.block_table, num_tokens):
                break
            self.waiting.pop(0)
            bisect.insort(self.running, newcomer, key=_rank)
            chosen.append((newcomer, num_tokens))
            budget -= num_tokens

        return StepPlan([s for s, _ in chosen], [s.step_item(num_tokens) for s, num_tokens in chosen])

    def update(
        self, plan: StepPlan, outputs: List[StepOutput], began_s: float, ended_s: float
    ) -> list[tuple[int, TokenOutput]]:
        """Absorb a step's result: (sequence id, what to tell its owner) for each that has news."""
        news = []
        for sequence, item, output in zip(plan.sequences, plan.items, outputs, strict=True):
            sequence.num_computed_tokens += len(item.token_ids)
            sequence.prompt_logprobs.extend(output.target_logprobs)
            if sequence.first_step_s is None:
                sequence.first_step_s = began_s
            told = self._absorb(sequence, output, ended_s)
            if told is not None:
                news.append((sequence.id, told))
        return news

    def check_integrity(self) -> None:
        """Raise `AssertionError` if a block is lost or doubled, or a sequence is in two places or in none."""
        self.blocks.check_integrity(sequence.block_table for sequence in self.sequences.values())
        if sorted(s.id for s in (*self.running, *self.waiting)) != sorted(self.sequences):
            raise AssertionError("a sequence is in two places or in none")
        if any(sequence.block_table for sequence in self.waiting):
            raise AssertionError("a waiting sequence owns blocks")

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence the blocks it needs, taken from the last in rank; False if that was itself."""
        while not self.blocks.grow(sequence.block_table, sequence.num_computed_tokens + num_tokens):
            victim = self.running.pop()
            self.blocks.release(victim.block_table)
            # By promise 1 computing it again changes nothing but time.
            victim.num_computed_tokens = 0
            if not victim.num_generated_tokens:
                victim.prompt_logprobs.clear()
            bisect.insort(self.waiting, victim, key=_rank)
            self.num_preemptions += 1
            if victim is sequence:
                return False
        return True

    def _absorb(self, sequence: Sequence, output: StepOutput, now_s: float) -> TokenOutput | None:
        if output.error is not None:
            self._finish(sequence)
            return TokenOutput(token_id=None, finish_reason="error", error=output.error)
        if output.token is None:
            return None
        is_first = sequence.first_token_s is None
        if is_first:
            sequence.first_token_s = now_s
        token = output.token
        sequence.token_ids.append(token.token_id)
        finish_reason = _finish_reason(sequence, token.token_id)
        if finish_reason is not None:
            self._finish(sequence)
        return TokenOutput(
            token_id=token.token_id,
            logprob=token.logprob,
            top=token.top,
            prompt_logprobs=tuple(sequence.prompt_logprobs) if is_first else (),
            finish_reason=finish_reason,
            timings=sequence.timings(now_s),
        )

    def _finish(self, sequence: Sequence) -> None:
        del self.sequences[sequence.id]
        place = self.running if sequence.block_table else self.waiting
        self.blocks.release(sequence.block_table)
        place.pop(bisect.bisect_left(place, sequence.rank, key=_rank))


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    if token_id in sequence.request.end_ids:
        return "stop"
    if sequence.num_generated_tokens >= sequence.request.max_new_tokens:
        return "length"
    return None
