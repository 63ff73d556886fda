"""R3, R4: what many get when more is asked than can be done, and when just as much is asked.

Decides rates and durations. Timed misses are told apart: on a busy machine they say little.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median

from bench.torture.arena import Arena, Finding, percentile_ms
from bench.torture.clients import probing
from bench.torture.load import loading
from bench.torture.wire import metrics
from bench.torture.wishes import Wish
from tests.whole import Server

RAMP = 0.2  # the part of a measurement that is not counted: the queue fills


async def capacity(
    arena: Arena, server: Server, wishes: list[Wish], duration_s: float
) -> tuple[float, float]:
    """Answers and tokens a second with as many clients as sequences may run, once they all do."""
    async with loading(arena, server.url) as load:
        asking = asyncio.create_task(load.closed(wishes, arena.num_streams, duration_s))
        await asyncio.sleep(RAMP * duration_s)
        began_s, num_before = time.perf_counter(), load.num_tokens
        await asyncio.sleep((1 - RAMP) * duration_s)
        tokens_per_s = (load.num_tokens - num_before) / (time.perf_counter() - began_s)
        await asking
    return tokens_per_s * load.tally.num_whole / max(1, load.tally.num_whole_tokens), tokens_per_s


async def overload(arena: Arena) -> Finding:
    """R3: three times the capacity, open loop. Goodput, refusals and probes."""
    finding = Finding("R3")
    wishes = await arena.mixed(300, 24)
    duration_s = arena.seconds(600, 6)
    warm_s = arena.seconds(60, 2 if arena.is_short else 20)
    places = ("--max-num-seqs", str(arena.num_streams), "--max-waiting", str(arena.num_streams // 2))
    with arena.server(*places) as server:
        answers_per_s, peak = await capacity(arena, server, wishes, warm_s)
        async with (
            probing(server.url) as probes,
            loading(arena, server.url) as load,
        ):
            began_s = time.perf_counter()
            times = 6 if arena.is_short else 3  # what two seconds find may be a third of it
            await load.open(wishes, times * answers_per_s, duration_s, arena.seed)
        finding.take(load.tally)
        finding.figures["preemptions"] = int((await metrics(server.url))["vllm:num_preemptions_total"])
    from_s, until_s = began_s + RAMP * duration_s, began_s + duration_s
    num_tokens = sum(count for end_s, count in load.tally.whole_s if from_s <= end_s <= until_s)
    goodput = num_tokens / (until_s - from_s)
    refusal_ms = percentile_ms(load.tally.refusal_s, 99)
    finding.figures |= {
        "peak tokens/s": round(peak),
        "goodput of it": round(goodput / max(peak, 1e-9), 3),
        "refusal ms p50": percentile_ms(load.tally.refusal_s, 50),
        "refusal ms p99": refusal_ms,
        "probes": len(probes.answer_s),
        "probe ms p99": percentile_ms(list(probes.answer_s), 99),
    }
    finding.expect(bool(load.tally.refusal_s), "nothing was refused: it was no overload")
    finding.expect(not any(probes.num_refused.values()), f"probes were refused: {probes.num_refused}")
    finding.expect_fast(not probes.num_silent, f"{probes.num_silent} probes had no answer in a second")
    finding.expect_fast(goodput >= 0.9 * peak, "goodput is under 90 % of the peak")
    finding.expect_fast(refusal_ms <= 50, "refusals take over 50 ms")
    return finding


async def steady(arena: Arena) -> Finding:
    """R4: as many streams as may run, one after another, and the gaps between their tokens."""
    finding = Finding("R4")
    wishes = await arena.steady(arena.num_streams, arena.limits.max_total_tokens)
    with arena.server() as server:
        async with loading(arena, server.url) as load:
            await load.closed(wishes, arena.num_streams, arena.seconds(600, 4), stagger_s=0.1)
        finding.take(load.tally, may_refuse=False)
    typical_ms, p99_ms = 1000 * median(load.tally.gap_s), percentile_ms(load.tally.gap_s, 99)
    finding.figures |= {"gap ms p50": round(typical_ms, 1), "gap ms p99": p99_ms}
    finding.expect_fast(p99_ms <= 2 * typical_ms, "the p99 gap is over twice the median")
    return finding
