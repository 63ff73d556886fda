"""An engine on the fake model, and everything that must be true of it whatever is done to it, and when.

For hypothesis in small (test_machine.py), and for millions of random steps on demand:

    python -m tests.server.engine.harness --steps 1000000
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import typer

from model.sampling.sampling_params import SamplingParams
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.request import GenerationRequest, Progress, Timings, TokenOutput
from server.engine.scheduler import Scheduler
from tests.server.engine.fake_model import BLOCK_SIZE, VOCAB_SIZE, FakeModel, continuation_with_logprobs

MAX_PROMPT, MAX_NEW = 40, 30
MIN_BLOCKS = -(-(MAX_PROMPT + MAX_NEW) // BLOCK_SIZE)


@dataclass
class Stream:
    """What the front would hold."""

    request: GenerationRequest
    arrival_s: float
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    timings: Timings | None = None
    prompt_logprobs: tuple[float, ...] = ()


class Harness:
    """Drives an engine as a front does, and compares each stream with what its prompt gives alone."""

    def __init__(
        self, num_blocks: int, max_batch_tokens: int, max_num_seqs: int, max_drafts: int = 0
    ) -> None:
        self.sizes = (num_blocks, max_batch_tokens, max_num_seqs, max_drafts)
        self.live: dict[int, Stream] = {}
        self.counts: Counter[str] = Counter()
        self._last_id = 0
        self._begin()

    def _begin(self) -> None:
        num_blocks, *limits = self.sizes
        scheduler = Scheduler(BlockManager(num_blocks, BLOCK_SIZE), *limits)
        self.model = FakeModel(num_blocks)
        self.engine = Engine(self.model, scheduler, lambda: float(self.counts["steps"]))

    def add(self, request: GenerationRequest, num_choices: int = 1) -> None:
        for choice in range(num_choices):
            self._last_id += 1
            stream = Stream(msgspec.structs.replace(request, choice=choice), float(self.counts["steps"]))
            self.live[self._last_id] = stream
            self.engine.add(self._last_id, stream.request, Progress(arrival_s=stream.arrival_s))
        self.counts["requests"] += num_choices

    def abort(self, sequence_id: int) -> None:
        self.engine.abort(sequence_id)
        del self.live[sequence_id]
        self.engine.scheduler.check_integrity()
        self.counts["aborts"] += 1

    def die(self, order: list[int]) -> None:
        """The engine is lost with its cache; another goes on with every stream, handed over in this order."""
        self._begin()
        for sequence_id in order:
            stream = self.live[sequence_id]
            progress = Progress(
                arrival_s=stream.arrival_s, token_ids=tuple(stream.token_ids), timings=stream.timings
            )
            self.engine.add(sequence_id, stream.request, progress)
        self.counts["deaths"] += 1

    def step(self) -> None:
        scheduler = self.engine.scheduler
        newcomer = scheduler.waiting.first()
        must_run = newcomer is not None and self._surely_fits(newcomer.num_tokens)
        before = {sequence.id: sequence.num_computed_tokens for sequence in scheduler.running}
        queued = {sequence.id for sequence in scheduler.waiting}
        num_preemptions, num_accepted = scheduler.num_preemptions, scheduler.num_accepted_tokens
        num_drafted = scheduler.num_draft_tokens
        news = self.engine.step()
        scheduler.check_integrity()
        assert self.model.steps[-1] <= scheduler.max_batch_tokens, "over the budget"
        assert len(scheduler.running) <= scheduler.max_num_seqs, "over the places"
        if must_run and newcomer is not None:
            assert newcomer.first_step_s is not None, "it would have fitted, and was not computed"
        if num_preemptions == scheduler.num_preemptions:
            for sequence in scheduler.running:
                assert sequence.num_computed_tokens > before.get(sequence.id, 0), "it ran, and got no token"
        for sequence in scheduler.running:
            assert sequence.num_computed_tokens < sequence.num_tokens, "a wrong guess counts as computed"
        self._check_order(queued)
        self.counts["preemptions"] += scheduler.num_preemptions - num_preemptions
        self.counts["drafted"] += scheduler.num_draft_tokens - num_drafted
        self.counts["accepted"] += scheduler.num_accepted_tokens - num_accepted
        self.counts["steps"] += 1
        for sequence_id, output in news:
            self._receive(sequence_id, output)

    def finish(self) -> None:
        """Every stream ends, in no more steps than there are tokens; then nothing is held."""
        num_left = sum(len(s.request.prompt_ids) + s.request.max_new_tokens for s in self.live.values())
        limit = self.counts["steps"] + num_left
        while self.live:
            assert self.counts["steps"] < limit, "starved"
            self.step()
        assert not self.engine.has_work
        assert self.engine.stats().num_free_blocks == self.sizes[0]

    def _check_order(self, queued: set[int]) -> None:
        """Of those that waited, none has passed a higher priority, nor an earlier one of its own key."""
        scheduler = self.engine.scheduler
        left = [(sequence.id, sequence.request) for sequence in scheduler.waiting if sequence.id in queued]
        for newcomer in (sequence for sequence in scheduler.running if sequence.id in queued):
            for its_id, other in left:
                assert other.priority <= newcomer.request.priority, "it passed one of a higher priority"
                if (other.tenant, other.priority) == (newcomer.request.tenant, newcomer.request.priority):
                    assert its_id > newcomer.id, "it passed one that came earlier"
                    self.counts["in order"] += 1

    def _surely_fits(self, num_tokens: int) -> bool:
        scheduler = self.engine.scheduler
        num_needed = -(-num_tokens // BLOCK_SIZE) + 2 * len(scheduler.running)
        has_place = len(scheduler.running) < scheduler.max_num_seqs
        return has_place and num_needed <= scheduler.blocks.num_free_blocks

    def _receive(self, sequence_id: int, output: TokenOutput) -> None:
        stream = self.live[sequence_id]
        request = stream.request
        assert output.token_id is not None
        stream.token_ids.append(output.token_id)
        stream.timings = output.timings
        stream.prompt_logprobs += output.prompt_logprobs
        stream.logprobs.append(output.logprob)
        if output.timings is not None:
            self.counts["cached"] += output.timings.cached_tokens if len(stream.token_ids) == 1 else 0
        if output.finish_reason is None:
            return
        expected = continuation_with_logprobs(request.prompt_ids, request.max_new_tokens, request.choice)
        ends = [i for i, (token_id, _) in enumerate(expected, 1) if token_id in request.end_ids]
        expected = expected[: ends[0]] if ends else expected
        told = list(zip(stream.token_ids, stream.logprobs, strict=True))
        assert told == expected, "not what its prompt gives alone"
        assert output.finish_reason == ("stop" if ends else "length")
        if request.wants_prompt_logprobs:
            assert stream.prompt_logprobs == tuple(-float(token_id) for token_id in request.prompt_ids[1:])
        del self.live[sequence_id]


def draw_request(pick: random.Random) -> tuple[GenerationRequest, int]:
    """A request, often with a prefix that others have had, and how many choices of it."""
    prefix = [pick.randrange(3) for _ in range(pick.choice((0, 4, 8, 20)))]
    own = [pick.randrange(VOCAB_SIZE) for _ in range(pick.randint(1, MAX_PROMPT - len(prefix)))]
    request = GenerationRequest(
        prompt_ids=tuple(prefix[:4] * (len(prefix) // 4) + own),
        sampling=SamplingParams(),
        max_new_tokens=pick.randint(1, MAX_NEW),
        end_ids=pick.choice(((), (), (4,), tuple(range(5, VOCAB_SIZE)))),
        priority=pick.choice((0, 0, 0, -1, 5)),
        tenant=pick.randrange(3),
        wants_prompt_logprobs=pick.random() < 0.2,
    )
    return request, pick.choice((1, 1, 1, 2, 4))


def main(
    steps: Annotated[int, typer.Option(min=1)] = 1_000_000, seed: Annotated[int, typer.Option()] = 0
) -> None:
    """Run so many random steps, in engines of random sizes; stops at the first fault."""
    total: Counter[str] = Counter()
    began_s = time.monotonic()
    while total["steps"] < steps:
        pick = random.Random(seed)
        max_num_seqs = pick.randint(1, 8)
        num_blocks = MIN_BLOCKS + pick.choice((0, 1, 5, 20, 100))
        max_batch_tokens = max_num_seqs + pick.choice((0, 1, 5, 40))
        harness = Harness(num_blocks, max_batch_tokens, max_num_seqs, pick.choice((0, 1, 4, 20)))
        for _ in range(pick.randint(1, 300)):
            act = pick.random()
            if act < 0.25:
                harness.add(*draw_request(pick))
            elif act < 0.28 and harness.live:
                harness.abort(pick.choice(list(harness.live)))
            elif act < 0.29:
                harness.die(pick.sample(list(harness.live), len(harness.live)))
            elif harness.live:
                harness.step()
        harness.finish()
        total += harness.counts
        total["engines"] += 1
        seed += 1
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(total.items()))
    print(f"no fault in {time.monotonic() - began_s:.0f} s: {counts}")


if __name__ == "__main__":
    typer.run(main)
