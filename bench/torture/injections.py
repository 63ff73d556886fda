"""R12, R13, and the hang of R7: faults inside the worker and the front, where no signal reaches.

Decides who is marked; the marks are explained in faulty_worker.py and faulty_front.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from bench.torture.arena import Arena, Finding, Tally
from bench.torture.check import End
from bench.torture.faulty_front import PROGRAM, STOP_MARK
from bench.torture.faulty_worker import Fault, seed_of
from bench.torture.load import loading
from bench.torture.wishes import Wish

FLAGS = ("--watchdog-s", "3")
NUM_VICTIMS = 2  # in one round
NUM_NEIGHBOURS = 10
VICTIM_TOKENS = 24
Mark = Callable[[int], dict[str, object]]  # the parameters that mark the victim of this number

PLACES: dict[str, Mark] = {  # where one request can fail by itself
    "processor": lambda number: {"seed": seed_of(Fault.PROCESSOR, number % 20, number)},
    "NaN": lambda number: {"seed": seed_of(Fault.NAN, number % 20, number)},
    "detokenizer": lambda number: {"stop": [f"{STOP_MARK}{number % 20}"]},
}
STEP_FAULTS = {"forward": Fault.FORWARD, "abort": Fault.ABORT, "hang": Fault.HANG}


async def victim(arena: Arena, parameters: dict[str, object]) -> Wish:
    """A marked request, and what it would get without the mark."""
    number = random.Random(repr(parameters)).randrange(1, arena.limits.vocab_size)
    always = {"max_new_tokens": VICTIM_TOKENS, "ignore_eos": True}
    [wish] = await arena.oracle.learn(
        [Wish([number, 17, 4, 1700 % arena.limits.vocab_size], always | parameters)]
    )
    return wish


async def one_request_fails(arena: Arena) -> Finding:
    """R12: a fault in what belongs to one request ends that request alone, and with an error."""
    finding = Finding("R12")
    neighbours = (await arena.mixed(300, 24))[:NUM_NEIGHBOURS]
    with arena.server(*FLAGS, program=PROGRAM) as server:
        first = server.worker()
        for name, mark in PLACES.items():
            num_failed = 0
            num_rounds = arena.times(50)
            for number in range(num_rounds):
                marked = [await victim(arena, mark(NUM_VICTIMS * number + i)) for i in range(NUM_VICTIMS)]
                hit, beside = await _round(arena, server.url, marked, neighbours)
                num_failed += hit.num[End.FAILED]
                finding.take(hit, may_fail=True, may_refuse=False)
                finding.take(beside, may_refuse=False)
            finding.figures[f"{name}: injected"] = NUM_VICTIMS * num_rounds
            finding.figures[f"{name}: failed alone"] = num_failed
            finding.expect(
                num_failed == NUM_VICTIMS * num_rounds, f"{name}: not every marked request failed by itself"
            )
        finding.expect(server.worker() == first, "the worker died of one request's fault")
    return finding


async def whole_step_fails(arena: Arena, names: tuple[str, ...] = tuple(STEP_FAULTS)) -> Finding:
    """R13, and R7's hang: once, and nobody notices; each time, and the request that does it is isolated."""
    finding = Finding("R13")
    neighbours = (await arena.mixed(300, 24))[:NUM_NEIGHBOURS]
    with arena.server(*FLAGS, program=PROGRAM) as server:
        for name, is_once in itertools.product(names, (True, False)):
            num_right = 0
            for number in range(arena.times(20)):
                seed = seed_of(STEP_FAULTS[name], number % 20, number, is_once=is_once)
                marked = await victim(arena, {"seed": seed})
                hit, beside = await _round(arena, server.url, [marked], neighbours)
                num_right += hit.num[End.WHOLE if is_once else End.FAILED]
                finding.take(hit, may_fail=not is_once, may_refuse=False)
                finding.take(beside, may_refuse=False)
            what = f"{name} once: ended whole" if is_once else f"{name} each time: failed alone"
            finding.figures[what] = f"{num_right}/{arena.times(20)}"
            finding.expect(
                num_right == arena.times(20), f"{name}: the request that caused it ended otherwise"
            )
    return finding


async def _round(
    arena: Arena, address: str, marked: list[Wish], neighbours: list[Wish]
) -> tuple[Tally, Tally]:
    """What became of the marked ones, and of those beside them."""
    async with loading(arena, address) as beside, loading(arena, address) as hit:
        for wish in neighbours:
            beside.start(wish)
        for wish in marked:
            hit.start(wish)
    return hit.tally, beside.tally
