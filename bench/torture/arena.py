"""What every row shares: the oracle, the seed, the scale, and the shape of a result.

The oracle is a second server that nobody disturbs: it answers each request alone, once, and what it said is
what every other answer must equal.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from bench.torture import wishes
from bench.torture.check import Answer, End, Outcome, read_answer
from bench.torture.faulty_worker import ONCE_FOLDER
from bench.torture.wire import fetch
from bench.torture.wishes import Limits, Wish
from tests.whole import PROGRAM, Server, running

MAX_EXAMPLES = 5

Figure = int | float | str


@dataclass(slots=True)
class Tally:
    """Outcomes, counted. Gaps and tokens are of all of them, times of those that ended whole."""

    num: Counter[End] = field(default_factory=Counter)
    num_tokens: int = 0  # read, of any
    num_whole_tokens: int = 0
    examples: list[str] = field(default_factory=list)  # of the lost and the failed
    refusal_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    whole_s: list[tuple[float, int]] = field(default_factory=list)  # when one became whole, and its tokens

    def add(self, outcome: Outcome) -> None:
        """One that has ended; an open one counts as lost."""
        outcome.settle(End.LOST, "it never ended")
        self.num[outcome.end] += 1
        times = outcome.token_s
        self.num_tokens += outcome.num_tokens
        if times:
            self.first_token_s.append(times[0] - outcome.sent_s)
            self.gap_s.extend(np.diff(times).tolist())
        match outcome.end:
            case End.WHOLE:
                self.num_whole_tokens += outcome.num_tokens
                self.whole_s.append((outcome.end_s, outcome.num_tokens))
            case End.REFUSED:
                self.refusal_s.append(outcome.head_s - outcome.sent_s)
            case End.LOST | End.FAILED:
                self._example(f"{outcome.end.value}: {outcome.why}"[:300])

    def merge(self, other: Tally) -> None:
        """All of another tally's, but its times."""
        self.num += other.num
        self.num_tokens += other.num_tokens
        self.num_whole_tokens += other.num_whole_tokens
        for example in other.examples:
            self._example(example)

    def _example(self, text: str) -> None:
        if text not in self.examples and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(text)

    @property
    def num_whole(self) -> int:
        """Answers that ended whole."""
        return self.num[End.WHOLE]

    def counts(self) -> dict[str, int]:
        """For a row's figures."""
        return {end.value: self.num[end] for end in End if self.num[end] or end is End.LOST}


@dataclass(slots=True)
class Finding:
    """What one row came to. Without a miss it holds."""

    row: str
    figures: dict[str, Figure] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)  # misses that a busy machine alone can cause
    num_checked: int = 0  # answers, compared token by token
    num_lost: int = 0

    def expect(self, is_so: bool, miss: str) -> None:
        """Note a miss unless it is so; the same one once."""
        if not is_so and miss not in self.misses:
            self.misses.append(miss)

    def expect_fast(self, is_so: bool, miss: str) -> None:
        """The same of a time."""
        if not is_so and miss not in self.slow:
            self.slow.append(miss)

    def take(self, tally: Tally, *, may_fail: bool = False, may_refuse: bool = True) -> None:
        """Count a tally in; what is lost is always a miss."""
        for end, count in tally.counts().items():
            self.figures[end] = int(self.figures.get(end, 0)) + count
        self.num_checked += sum(tally.num.values())
        self.num_lost += tally.num[End.LOST]
        for example in tally.examples:
            self.expect(may_fail and example.startswith(End.FAILED.value), example)
        self.expect(may_refuse or not tally.num[End.REFUSED], "an answer was refused")


@dataclass(slots=True)
class Arena:
    """Where a run takes place. `scale` 1 is the scoreboard's length; the suite runs a few hundredths."""

    oracle: Oracle
    seed: int
    scale: float
    limits: Limits
    stack: ExitStack
    environment: dict[str, str]  # of the servers under test
    kept: dict[tuple[str, ...], Server] = field(default_factory=dict)

    @property
    def is_short(self) -> bool:
        """Whether this is the suite's run, of seconds, or a look in passing."""
        return self.scale < 0.05

    @property
    def num_streams(self) -> int:
        """As many as run at once by default; a short run has fewer, and need not ask the oracle for long."""
        return 8 if self.is_short else 32

    def times(self, full: int, at_least: int = 1) -> int:
        """How often, at this scale."""
        return max(at_least, math.ceil(full * self.scale))

    def seconds(self, full_s: float, at_least_s: float) -> float:
        """How long, at this scale."""
        return max(at_least_s, full_s * self.scale)

    def of_context(self, num_tokens: int) -> Arena:
        """The same, but that an answer may fill a context of so many tokens, in a short run too.

        Whether memory runs out is then the lengths' doing, not a matter of who asked when.
        """
        limits = replace(self.limits, max_total_tokens=num_tokens, max_new_tokens=num_tokens)
        return replace(self, limits=limits)

    async def mixed(self, full: int, at_least: int) -> list[Wish]:
        """Wishes of every kind, so many at this scale, whose answers are known. All rows draw the same."""
        return await self.oracle.learn(wishes.mixed(self.seed, self.limits, self.times(full, at_least)))

    async def steady(
        self, count: int, num_new_tokens: int, num_prompt_tokens: int = 32, number: int = 0
    ) -> list[Wish]:
        """Wishes of one length, whose answers are known; others for each number."""
        seed = self.seed + 1000 * number
        drawn = wishes.steady(seed, self.limits, count, num_new_tokens, num_prompt_tokens)
        return await self.oracle.learn(drawn)

    @contextmanager
    def server(self, *flags: str, program: str = PROGRAM) -> Iterator[Server]:
        """The server under test, on the oracle's model. A short run keeps each kind for later rows."""
        key = (program, *flags)
        if not self.is_short:
            with running(*flags, program=program, **self.environment) as server:
                yield server
            return
        if key not in self.kept or self.kept[key].process.poll() is not None:
            self.kept[key] = self.stack.enter_context(running(*flags, program=program, **self.environment))
        yield self.kept[key]


class Oracle:
    """The expected answers, from a quiet server; each is asked for once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._answers: dict[bytes, Answer] = {}

    async def learn(self, asked: list[Wish]) -> list[Wish]:
        """Have the answers to these, one after another, each alone; the same wishes."""
        for wish in asked:
            if wish.key not in self._answers:
                head, body = await fetch(self.address, "/generate", wish.key)
                if head.status != 200:
                    raise RuntimeError(f"the quiet server refused {wish}: {body!r}")
                self._answers[wish.key], _ = read_answer(body)
        return asked

    def answer(self, wish: Wish) -> Answer:
        """Learnt before."""
        return self._answers[wish.key]


@contextmanager
def arena(seed: int = 0, scale: float = 1.0, longest: int | None = None) -> Iterator[Arena]:
    """With an oracle of its own, until the block ends."""
    with ExitStack() as stack:
        quiet = stack.enter_context(running())
        limits = asyncio.run(limits_of(quiet.url, longest))
        environment = {ONCE_FOLDER: stack.enter_context(tempfile.TemporaryDirectory())}
        yield Arena(Oracle(quiet.url), seed, scale, limits, stack, environment)


async def limits_of(address: str, longest: int | None = None) -> Limits:
    """What this server takes; `longest` bounds the answers that are asked for."""
    _, body = await fetch(address, "/info")
    info: dict[str, Any] = msgspec.json.decode(body)
    total = info["max_total_tokens"]
    return Limits(info["vocab_size"], total, min(longest or total, total), info["max_best_of"])


async def poll(
    condition: Callable[[], Awaitable[bool]], limit_s: float, interval_s: float = 0.01
) -> float | None:
    """After how many seconds the condition held; None if it did not within the limit."""
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < limit_s:
        if await condition():
            return time.perf_counter() - began_s
        await asyncio.sleep(interval_s)
    return None


def percentile_ms(seconds: list[float], percent: float) -> float:
    """Of times in seconds, in milliseconds; 0 of none."""
    return round(1000 * float(np.percentile(seconds, percent)), 1) if seconds else 0.0
