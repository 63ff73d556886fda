"""R1, R2, R11: every answer is the one that its request gets alone, whatever is around it.

Decides in which companies, budgets and pools; the comparing is in check.py.
"""

from __future__ import annotations

import random
import time

from bench.torture.arena import Arena, Finding, Tally
from bench.torture.load import loading, together
from bench.torture.wire import fetch, metrics
from bench.torture.wishes import Wish


async def token_integrity(arena: Arena) -> Finding:
    """R1 without a fault: requests of every kind, streamed and not, more than can run at once."""
    finding = Finding("R1")
    wishes = await arena.mixed(300, 24)
    rng = random.Random(arena.seed)
    with arena.server() as server:
        for _ in range(arena.times(10, 1)):
            async with loading(arena, server.url) as load:
                for wish in rng.sample(wishes, min(len(wishes), 200)):  # the queue has room for their choices
                    load.start(wish, is_stream=rng.random() < 0.7)
            finding.take(load.tally, may_refuse=False)
        num_cached = (await metrics(server.url))["vllm:prefix_cache_hits_total"]
    finding.figures["cached tokens"] = int(num_cached)
    finding.expect(num_cached > 0, "nothing was found in the prefix cache, so nothing was shown of it")
    return finding


async def batch_independence(arena: Arena) -> Finding:
    """R2: alone and again, in company, under other budgets, and preempted; cold and warm prefix cache."""
    finding = Finding("R2")
    room = arena.limits.max_total_tokens
    growing = await arena.of_context(room).steady(8, 300, 64)  # past the memory that they begin with
    wishes = growing + await arena.mixed(150, 12)
    companies: list[tuple[tuple[str, ...], tuple[int, ...]]]  # flags, and how many at once
    if arena.is_short:  # all of it on one server
        odd = ("--max-num-seqs", "7", "--max-batch-tokens", "40", "--kv-cache-tokens", str(room))
        companies = [(odd, (16,))]
    else:
        companies = [
            ((), (1, 1, 2, 8, 32)),  # the second time alone, the prefix cache is warm
            (("--max-batch-tokens", "32"), (32,)),
            (("--max-num-seqs", "5", "--max-batch-tokens", "7"), (16,)),
            (("--kv-cache-tokens", str(room)), (16,)),
        ]
    all_of_them = Tally()
    num_cached = num_preempted = 0
    for flags, widths in companies:
        with arena.server(*flags) as server:
            for width in widths:
                for first in range(0, len(wishes), width):
                    all_of_them.merge(await together(arena, server.url, wishes[first : first + width]))
            series = await metrics(server.url)
            num_preempted += int(series["vllm:num_preemptions_total"])
            num_cached += int(series["vllm:prefix_cache_hits_total"])
    finding.take(all_of_them, may_refuse=False)
    finding.figures |= {"tokens": all_of_them.num_tokens, "preemptions": num_preempted}
    finding.figures["cached tokens"] = num_cached
    finding.expect(num_preempted > 0, "nothing was preempted, so nothing was shown of it")
    finding.expect(
        num_cached > 0 or arena.is_short, "nothing was found in the prefix cache, so nothing was shown of it"
    )
    return finding


async def memory_pressure(arena: Arena) -> Finding:
    """R11: a KV pool of a quarter of the demand, and one of half a context; what never fits is refused."""
    finding = Finding("R11")
    room = arena.limits.max_total_tokens
    pools = [("half a context", room // 2, arena.num_streams // 2)]
    if not arena.is_short:
        pools.append(("a quarter", room, arena.num_streams))
    for name, max_total, num_streams in pools:
        within = arena.of_context(max_total)
        wishes = await within.steady(num_streams, max_total - 64, 64) + await within.mixed(40, 8)
        num_known = sum(64 + wish.parameters["max_new_tokens"] for wish in wishes)
        num_held = max_total if max_total < room else max(room, num_known // 4)
        for _ in range(arena.times(10)):
            with arena.server("--kv-cache-tokens", str(num_held)) as server:
                tally = await together(arena, server.url, wishes)
                series = await metrics(server.url)
                if max_total < room:
                    await _refused_at_once(server.url, max_total, finding)
            finding.take(tally, may_refuse=False)
            num_preemptions = series["vllm:num_preemptions_total"]
            finding.figures[f"{name}: preemptions"] = int(num_preemptions)
            finding.figures[f"{name}: steps"] = int(series["verbatim_engine_steps_total"])
            finding.expect(num_preemptions > 0, f"{name}: nothing was preempted")
            finding.expect(not series["vllm:kv_cache_usage_perc"], f"{name}: blocks are held by nobody")
    return finding


async def _refused_at_once(address: str, max_total: int, finding: Finding) -> None:
    """A prompt that fits the model's context, and not this cache."""
    wish = Wish([1] * (max_total + 50), {"max_new_tokens": 20})
    began_s = time.perf_counter()
    head, body = await fetch(address, "/generate", wish.body(is_stream=False))
    finding.figures["never fits: ms to refusal"] = round(1000 * (time.perf_counter() - began_s), 1)
    finding.expect(head.status == 422, f"a request that never fits got {head.status}: {body[:100]!r}")
