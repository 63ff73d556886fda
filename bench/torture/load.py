"""Load on a server: so many streams at all times (closed loop), or so many arrivals a second (open loop).

An open loop does not wait for answers, as the world does not: only so is overload seen. Decides when who
asks, and collects what became of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from bench.torture.arena import Arena, Tally
from bench.torture.check import Answer, End, Outcome
from bench.torture.clients import Manner, ask
from bench.torture.wire import Connection
from bench.torture.wishes import Wish

STALL_S = 60.0  # without any progress: far beyond a restart, or a watchdog's time
REFUSED_PAUSE_S = 0.2  # before a client of a closed loop asks again


class Load:
    """Requests under way to one server, all of them checked."""

    def __init__(self, expected: Callable[[Wish], Answer | None], address: str) -> None:
        self._expected = expected
        self._address = address
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._half_open: list[Connection] = []
        self.live: set[Outcome] = set()
        self.tally = Tally()

    @property
    def num_tokens(self) -> int:
        """Read so far."""
        return self.tally.num_tokens + sum(outcome.num_tokens for outcome in self.live)

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._tasks)

    def start(
        self,
        wish: Wish,
        *,
        is_stream: bool = True,
        leave_after_s: float | None = None,
        manner: Manner = "FIN",
    ) -> None:
        """One request, from now on; its client may leave before the answer is whole."""
        task = asyncio.create_task(self._run(wish, is_stream, leave_after_s, manner))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, stall_s: float) -> None:
        """Until all have ended; those left when none has made progress for so long count as lost."""
        pending, before = set(self._tasks), None
        while pending:
            _, pending = await asyncio.wait(pending, timeout=stall_s)
            now = (self.num_tokens, len(pending))
            if now == before:
                break
            before = now
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for connection in self._half_open:
            connection.reset()

    async def until_tokens(self, num_tokens: int, limit_s: float = 30.0) -> bool:
        """Until so many more were read; whether they were."""
        goal, end_s = self.num_tokens + num_tokens, time.perf_counter() + limit_s
        while self.num_tokens < goal and time.perf_counter() < end_s and self._tasks:
            await asyncio.sleep(0.005)
        return self.num_tokens >= goal

    async def closed(
        self, wishes: Sequence[Wish], num_streams: int, duration_s: float, stagger_s: float = 0.0
    ) -> None:
        """`num_streams` clients, each asking again as soon as it was answered.

        Staggered, their prompts do not meet again and again in one step.
        """
        end_s = time.perf_counter() + duration_s

        async def client(place: int) -> None:
            await asyncio.sleep(stagger_s * place)
            while time.perf_counter() < end_s:
                outcome = await self._run(wishes[place % len(wishes)])
                if outcome.end is End.REFUSED:
                    await asyncio.sleep(REFUSED_PAUSE_S)
                place += num_streams

        await asyncio.gather(*(client(place) for place in range(num_streams)))

    async def open(self, wishes: Sequence[Wish], rate_per_s: float, duration_s: float, seed: int) -> None:
        """Arrivals at random (Poisson) moments; returns at the end of the time, with requests under way."""
        rng = random.Random(seed)
        now_s = time.perf_counter()
        end_s, next_s = now_s + duration_s, now_s
        while next_s < end_s:
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            self.start(rng.choice(wishes), is_stream=rng.random() < 0.8)
            next_s += rng.expovariate(rate_per_s)

    async def _run(
        self, wish: Wish, is_stream: bool = True, leave_after_s: float | None = None, manner: Manner = "FIN"
    ) -> Outcome:
        outcome = Outcome()
        self.live.add(outcome)
        try:
            half_open = await ask(
                self._address,
                wish,
                self._expected(wish),
                outcome,
                is_stream=is_stream,
                leave_after_s=leave_after_s,
                manner=manner,
            )
            if half_open is not None:
                self._half_open.append(half_open)
        finally:
            self.live.discard(outcome)
            self.tally.add(outcome)
        return outcome


@asynccontextmanager
async def loading(arena: Arena | None, address: str, stall_s: float = STALL_S) -> AsyncIterator[Load]:
    """Ends when all of its requests have. Without an arena the answers are compared with nothing."""
    load = Load(arena.oracle.answer if arena else lambda wish: None, address)
    try:
        yield load
    finally:
        await load.wait(stall_s)


async def together(arena: Arena, address: str, wishes: Sequence[Wish], *, is_stream: bool = True) -> Tally:
    """All at once."""
    async with loading(arena, address) as load:
        for wish in wishes:
            load.start(wish, is_stream=is_stream)
    return load.tally
