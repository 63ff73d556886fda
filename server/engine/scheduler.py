"""Scheduler: which sequences compute how many tokens in the next step, and what its result means for them.

Plain integers, no clock of its own, no model. There is no prefill phase and no decode phase: in every step
each sequence catches up with its known tokens, as far as one budget of tokens goes.

Each running sequence has at least one token in every step, and so has the first of the waiting ones if it
fits: if there is a place, and the blocks for all that it knows, and one more for each that runs. None passes
one that does not fit. So who waits at place k computes within k steps if those before it fit beside each
other; and in any case within as many steps as those that run or wait before it can have tokens, all told: the
first of them is never preempted, and has one in each step. Who comes later with a higher priority, or with a
key whose turn it is, counts as before it.

What is left of the budget then carries drafts: guesses at a sequence's next tokens, which are computed with
its last known one, so that a step can give it several. Where a guess was wrong, what was computed after it
counts for nothing, and is written over.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as List
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from model.interface import SampledToken, StepItem, StepOutput
from server.engine.block_manager import BlockManager
from server.engine.request import FinishReason, TokenOutput
from server.engine.sequence import Sequence
from server.engine.waiting import WaitingQueue

_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The sequences of one step, and for each the item that the model gets."""

    sequences: list[Sequence]
    items: list[StepItem]


class Scheduler:
    """First come, first served within a priority, under a budget of tokens and of sequences."""

    def __init__(
        self, blocks: BlockManager, max_batch_tokens: int, max_num_seqs: int, max_drafts: int = 0
    ) -> None:
        if max_batch_tokens < max_num_seqs:
            raise ValueError(
                f"max_batch_tokens is {max_batch_tokens}, must be at least max_num_seqs, {max_num_seqs}: "
                "every running sequence needs a token in each step"
            )
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        self.max_num_seqs = max_num_seqs
        self.max_drafts = max_drafts  # of one sequence in one step
        self.sequences: dict[int, Sequence] = {}  # all that are not finished
        self.running: list[Sequence] = []  # by rank; each owns blocks
        self.waiting = WaitingQueue()  # none of them owns a block
        # By the leader whose prompt they share once it is computed. None of them owns a block.
        self.followers: dict[int, list[Sequence]] = {}
        self.num_preemptions = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; a further choice only once the first one has computed their prompt."""
        self.sequences[sequence.id] = sequence
        leader = self.sequences.get(sequence.id - sequence.request.choice, sequence)
        if leader is sequence or leader.num_generated_tokens:
            self.waiting.add(sequence)
        else:
            sequence.leader_id = leader.id
            self.followers.setdefault(leader.id, []).append(sequence)

    def abort(self, sequence_id: int) -> None:
        """Forget a sequence at once, wherever it is; its blocks are free. Unknown ids are ignored."""
        sequence = self.sequences.get(sequence_id)
        if sequence is not None:
            self._finish(sequence)

    def schedule(self) -> StepPlan:
        """Choose the next step: the running ones by rank, then waiting ones while budget and blocks last."""
        plan = StepPlan([], [])
        num_preemptions = self.num_preemptions
        self._make_way()
        has_newcomer = len(self.running) < self.max_num_seqs and self.waiting.first() is not None
        budget = self.max_batch_tokens - has_newcomer  # a token is kept for it, as for each that runs
        position = 0
        while position < len(self.running):  # which may lose its tail to preemption meanwhile
            sequence = self.running[position]
            num_behind = len(self.running) - position - 1
            gap = len(sequence.token_ids) - sequence.num_computed_tokens
            num_tokens = min(gap, budget - num_behind)
            if self._make_room(sequence, sequence.num_computed_tokens + num_tokens):
                plan.sequences.append(sequence)
                plan.items.append(sequence.step_item(num_tokens))
                budget -= num_tokens
                position += 1
        budget += has_newcomer
        # After a preemption a newcomer would be the next to go.
        while budget and num_preemptions == self.num_preemptions and (newcomer := self._admit()) is not None:
            num_tokens = min(budget, newcomer.num_tokens - newcomer.num_computed_tokens)
            plan.sequences.append(newcomer)
            plan.items.append(newcomer.step_item(num_tokens))
            budget -= num_tokens
        if self.max_drafts:
            self._add_drafts(plan, budget)
        return plan

    def update(
        self, plan: StepPlan, outputs: List[StepOutput], began_s: float, ended_s: float
    ) -> list[tuple[int, TokenOutput]]:
        """Absorb a step's result: (sequence id, what to tell its owner) for each that has news."""
        news = []
        for sequence, item, output in zip(plan.sequences, plan.items, outputs, strict=True):
            if sequence.first_step_s is None:
                sequence.first_step_s = began_s
            if output.error is not None:
                self._finish(sequence, is_sound=False)
                told = TokenOutput(token_id=None, finish_reason="error", error=output.error)
                news.append((sequence.id, told))
                continue
            self._advance(sequence, len(item.token_ids) - item.num_drafts)
            if output.target_logprobs:
                sequence.prompt_logprobs.extend(output.target_logprobs)
            self.num_draft_tokens += item.num_drafts
            if self.max_drafts and output.tokens:
                sequence.lookup.count(item.num_drafts, len(output.tokens) - 1, self.max_drafts)
            for index, token in enumerate(output.tokens):
                if index:  # the token before it was guessed, and so is computed
                    self._advance(sequence, 1)
                    self.num_accepted_tokens += 1
                news.append((sequence.id, self._absorb(sequence, token, ended_s)))
                if sequence.id not in self.sequences:  # it ended, maybe before its guesses did
                    break
        return news

    def check_integrity(self) -> None:
        """Raise `AssertionError` if a block is lost or doubled, or a sequence is in two places or in none."""
        self.blocks.check_integrity(sequence.block_table for sequence in self.sequences.values())
        held = [sequence for followers in self.followers.values() for sequence in followers]
        if sorted(s.id for s in (*self.running, *self.waiting, *held)) != sorted(self.sequences):
            raise AssertionError("a sequence is in two places or in none")
        if any(sequence.block_table for sequence in (*self.waiting, *held)):
            raise AssertionError("a waiting sequence owns blocks")
        if not self.followers.keys() <= self.sequences.keys():
            raise AssertionError("a sequence waits for one that is gone")
        if self.running != sorted(self.running, key=_rank):
            raise AssertionError("the running ones are out of order")

    def _add_drafts(self, plan: StepPlan, budget: int) -> None:
        """Fill the budget with guesses; of the blocks, one stays for each that runs."""
        for index, (sequence, item) in enumerate(zip(plan.sequences, plan.items, strict=True)):
            if item.sample is None or not sequence.num_generated_tokens:
                continue
            draft_ids = sequence.draft(min(self.max_drafts, budget))
            num_tokens = sequence.num_tokens + len(draft_ids)
            if draft_ids and not self.blocks.grow(sequence.block_table, num_tokens, len(self.running)):
                del draft_ids[len(sequence.block_table) * self.blocks.block_size - sequence.num_tokens :]
            if draft_ids:
                plan.items[index] = msgspec.structs.replace(
                    item, token_ids=[*item.token_ids, *draft_ids], num_drafts=len(draft_ids)
                )
                budget -= len(draft_ids)

    def _make_way(self) -> None:
        """Let waiting ones take the places and the blocks of running ones of lower priority."""
        while self.running and (newcomer := self.waiting.first()) is not None:
            if self.running[-1].request.priority >= newcomer.request.priority:
                break
            if self._admit() is None:
                self._preempt()

    def _admit(self) -> Sequence | None:
        """Let the first of the waiting ones run, if it fits; see above."""
        newcomer = self.waiting.first() if len(self.running) < self.max_num_seqs else None
        if newcomer is None:
            return None
        found = []
        if not newcomer.needs_prompt_logits:  # the last token is computed in any case: its logits are needed
            tenant = newcomer.request.tenant
            found = self.blocks.find(tenant, newcomer.token_ids, newcomer.num_tokens - 1)
        if not self.blocks.start(newcomer.block_table, found, newcomer.num_tokens, len(self.running)):
            return None
        self.waiting.take(newcomer)
        bisect.insort(self.running, newcomer, key=_rank)
        newcomer.num_computed_tokens = len(found) * self.blocks.block_size
        if newcomer.first_step_s is None:
            newcomer.num_cached_tokens = newcomer.num_computed_tokens
        return newcomer

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence the blocks it needs, taken from the last in rank; False if that was itself."""
        while not self.blocks.grow(sequence.block_table, num_tokens):
            if self._preempt() is sequence:
                return False
        return True

    def _preempt(self) -> Sequence:
        """Send the last in rank back to wait. What it computed stays to be found, while it can."""
        victim = self.running.pop()
        self.blocks.release(victim.block_table)
        victim.forget_computed()
        self.waiting.add(victim)
        self.num_preemptions += 1
        return victim

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        """So many more of its tokens are in the cache; blocks that are full now can be found."""
        num_full = sequence.num_computed_tokens // self.blocks.block_size
        sequence.num_computed_tokens += num_tokens
        for index in range(num_full, sequence.num_computed_tokens // self.blocks.block_size):
            self.blocks.seal(sequence.block_table, index, sequence.request.tenant, sequence.token_ids)

    def _absorb(self, sequence: Sequence, token: SampledToken, now_s: float) -> TokenOutput:
        prompt_logprobs: tuple[float, ...] = ()
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
            prompt_logprobs = tuple(sequence.prompt_logprobs)
            self._let_follow(sequence.id)
        index = sequence.num_generated_tokens
        sequence.token_ids.append(token.token_id)
        finish_reason = _finish_reason(sequence, token.token_id)
        if finish_reason is not None:
            self._finish(sequence)
        return TokenOutput(
            token_id=token.token_id,
            index=index,
            logprob=token.logprob,
            top=token.top,
            prompt_logprobs=prompt_logprobs,
            finish_reason=finish_reason,
            timings=sequence.timings(now_s),
        )

    def _finish(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        del self.sequences[sequence.id]
        if sequence.block_table:
            self.running.pop(bisect.bisect_left(self.running, sequence.rank, key=_rank))
            self.blocks.release(sequence.block_table, is_sound=is_sound)
        elif sequence.leader_id is not None:
            self.followers[sequence.leader_id].remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._let_follow(sequence.id)

    def _let_follow(self, leader_id: int) -> None:
        """The leader's prompt is computed, or never will be: those behind it need not wait for it."""
        for follower in self.followers.pop(leader_id, ()):
            follower.leader_id = None
            self.waiting.add(follower)


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    if token_id in sequence.request.end_ids:
        return "stop"
    if sequence.num_generated_tokens >= sequence.request.max_new_tokens:
        return "length"
    return None
