"""R8, R9, R10: clients that vanish, read slowly, send slowly or say nothing, and what the others notice.

Decides how many of each. That a client is dropped is the server's business; that it costs the others nothing
is what is shown.
"""

from __future__ import annotations

import asyncio
import random
import time

from bench.torture.arena import Arena, Finding, percentile_ms, poll
from bench.torture.clients import MANNERS, Manner, idle, read_slowly, send_slowly
from bench.torture.load import loading
from bench.torture.wire import metrics, request
from bench.torture.wishes import Wish, steady
from tests.whole import Server

NUM_GOOD = 8
NUM_PLACES = 64  # sequences that run at once
SAME = 1.5  # times are of a machine that others use, too
FREE_LIMIT_S = 5.0
DROPPED = "verbatim_dropped_connections_total"
SLACK_S = 3.0


# ---- R8 ---------------------------------------------------------------------------------------------------


async def vanishing(arena: Arena) -> Finding:
    """R8: half of the clients vanish at one moment; then, in other rounds, all of them."""
    finding = Finding("R8")
    rng = random.Random(arena.seed)
    staying = [wish for wish in await arena.mixed(300, 24) if wish.can_stream]
    # Some would run far longer than we wait: if they were not aborted, it would be seen.
    endless = {"max_new_tokens": arena.limits.max_total_tokens - 64, "ignore_eos": True}
    leaving = [Wish(wish.inputs, endless) for wish in steady(arena.seed, arena.limits, 24, 1, 32)]
    leaving += staying[:24]
    freed_s: list[float] = []
    num_wasted = 0
    with arena.server("--max-num-seqs", "16", "--write-timeout-s", "2") as server:
        for number in range(arena.times(100, 4)):
            manner = MANNERS[number % 10 % 3 if number % 10 else 0]
            stay = [] if number % 4 == 3 else rng.sample(staying, min(len(staying), 24))
            took_s, num_steps = await _round(arena, server, stay, leaving, rng, manner, finding)
            if manner != "half-open":
                freed_s.append(took_s)
                num_wasted = max(num_wasted, 0 if stay else num_steps)
    finding.figures |= {"s until free": round(max(freed_s), 3), "steps after all left": num_wasted}
    finding.expect_fast(max(freed_s) <= 1.0, "blocks were free only after a second")
    finding.expect_fast(num_wasted <= 4, "the engine went on for clients that had left")  # 2 while we ask
    return finding


async def _round(
    arena: Arena,
    server: Server,
    staying: list[Wish],
    leaving: list[Wish],
    rng: random.Random,
    manner: Manner,
    finding: Finding,
) -> tuple[float, int]:
    """Seconds until those who left hold nothing, and the steps that were made meanwhile."""
    leave_after_s = rng.uniform(0.0, 1.5)
    async with loading(arena, server.url) as stay, loading(None, server.url) as leave:
        for wish in staying:
            stay.start(wish, is_stream=rng.random() < 0.7)
        for wish in rng.sample(leaving, min(len(leaving), 24)):
            leave.start(wish, is_stream=rng.random() < 0.7, leave_after_s=leave_after_s, manner=manner)
        await asyncio.sleep(leave_after_s)
        before = (await metrics(server.url))["verbatim_engine_steps_total"]

        async def is_free() -> bool:
            series = await metrics(server.url)
            held = series["vllm:num_requests_running"] + series["vllm:num_requests_waiting"]
            return held <= len(stay.live)

        took_s = 0.0 if manner == "half-open" else await poll(is_free, FREE_LIMIT_S)
        after = (await metrics(server.url))["verbatim_engine_steps_total"]
    finding.take(stay.tally, may_refuse=False)
    finding.take(leave.tally, may_refuse=False)
    finding.expect(took_s is not None, f"those who left by {manner} were held for over {FREE_LIMIT_S} s")
    finding.expect(await until_idle(server) is not None, f"after {manner}, blocks are held by nobody")
    return (FREE_LIMIT_S if took_s is None else took_s), int(after - before)


async def until_idle(server: Server, limit_s: float = 30.0) -> float | None:
    """After how long nothing runs, waits or holds a block."""

    async def is_idle() -> bool:
        series = await metrics(server.url)
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return not any(series[name] for name in names)

    return await poll(is_idle, limit_s)


# ---- R9 ---------------------------------------------------------------------------------------------------


KINDS: dict[str, dict[str, object]] = {"plain": {}, "20 alternatives": {"top_n_tokens": 20}}


async def slow_readers(arena: Arena) -> Finding:
    """R9: readers of one byte a second, of answers larger than any socket's buffer."""
    finding = Finding("R9")
    # What plain tokens take is soon known; the others fill the buffers sooner, which suits a short run.
    for name in ("20 alternatives",) if arena.is_short else KINDS:
        await _read_slowly(arena, finding, name)
    return finding


async def _read_slowly(arena: Arena, finding: Finding, kind: str) -> None:
    num_readers, limit_s = arena.times(256, 8), arena.seconds(30, 2)
    endless = {"max_new_tokens": arena.limits.max_total_tokens - 32, "ignore_eos": True, **KINDS[kind]}
    large = [Wish(wish.inputs, endless) for wish in steady(arena.seed, arena.limits, num_readers, 1, 32)]
    brief = [Wish(wish.inputs, endless | {"max_new_tokens": 100}) for wish in large]
    good = await arena.steady(NUM_GOOD, 200)
    flags = ("--max-num-seqs", str(NUM_PLACES), "--max-waiting", "512", "--write-timeout-s", str(limit_s))
    with arena.server(*flags) as server:
        async with loading(arena, server.url) as load:
            await load.closed(good, NUM_GOOD, arena.seconds(30, 1))
        alone_ms = percentile_ms(load.tally.gap_s, 99)
        finding.take(load.tally, may_refuse=False)
        before = 0
        async with loading(None, server.url) as load:  # what such answers take by themselves
            quick = asyncio.create_task(load.closed(brief, NUM_PLACES, arena.seconds(30, 1)))
            while not quick.done():
                before = max(before, server.front().memory_info().rss)
                await asyncio.sleep(0.2)
            await quick
        finding.take(load.tally, may_refuse=False)
        most = before
        began_s = time.perf_counter()
        dropped_s: list[float] = []
        readers = [asyncio.create_task(read_slowly(server.url, wish)) for wish in large]

        async def is_over() -> bool:
            nonlocal most
            most = max(most, server.front().memory_info().rss)
            series = await metrics(server.url)
            num = sum(value for name, value in series.items() if name.startswith(DROPPED))
            dropped_s.extend([time.perf_counter() - began_s] * (int(num) - len(dropped_s)))
            return beside.done() and len(dropped_s) >= num_readers

        async with loading(arena, server.url) as load:
            beside = asyncio.create_task(load.closed(good, NUM_GOOD, arena.seconds(300, 4)))
            await poll(is_over, arena.seconds(600, 60), interval_s=0.2)
            await beside
        finding.take(load.tally, may_refuse=False)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        finding.expect(await until_idle(server) is not None, "blocks are held by nobody")
    kib_each, beside_ms = (most - before) / num_readers / 1024, percentile_ms(load.tally.gap_s, 99)
    finding.figures |= {
        f"{kind}: dropped": f"{len(dropped_s)}/{num_readers}",
        f"{kind}: s until the last was": round(max(dropped_s, default=0.0), 1),
        f"{kind}: KiB of the front each": round(kib_each, 1),
        f"{kind}: others' gap ms p99": beside_ms,
        f"{kind}: without them": alone_ms,
    }
    finding.expect(len(dropped_s) >= num_readers, f"{kind}: not all were dropped")
    finding.expect_fast(kib_each <= 64, f"{kind}: a slow reader costs over 64 KiB")
    _expect_unchanged(finding, beside_ms, alone_ms)


def _expect_unchanged(finding: Finding, beside_ms: float, alone_ms: float) -> None:
    finding.expect_fast(beside_ms <= SAME * alone_ms, f"others' gaps went from {alone_ms} to {beside_ms} ms")


# ---- R10 --------------------------------------------------------------------------------------------------


async def slow_senders(arena: Arena) -> Finding:
    """R10: sockets that say nothing, headers and bodies that come a byte at a time."""
    finding = Finding("R10")
    num_sockets = arena.times(1000, 12)
    header_s, body_s = arena.seconds(10, 1), arena.seconds(30, 2)
    interval_s = min(1.0, header_s / 5)
    good = await arena.steady(NUM_GOOD, 200)
    head = b"POST /generate HTTP/1.1\r\nhost: torture\r\nx-slow: " + b"a" * 1000
    whole = request("POST", "/generate", good[0].body(is_stream=True))
    flags = ("--header-timeout-s", str(header_s), "--body-timeout-s", str(body_s))
    with arena.server(*flags) as server:
        async with loading(arena, server.url) as load:
            await load.closed(good, NUM_GOOD, arena.seconds(30, 1))
        alone_ms = percentile_ms(load.tally.gap_s, 99)
        async with loading(arena, server.url) as load:
            senders = [
                asyncio.create_task(_one_sender(server.url, place, head, whole, interval_s))
                for place in range(num_sockets)
            ]
            await load.closed(good, NUM_GOOD, body_s)
        done, pending = await asyncio.wait(senders, timeout=10.0)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        finding.take(load.tally, may_refuse=False)
    ended = [task.result() for task in done]
    finding.expect(not pending, f"{len(pending)} were never closed")
    for kind, limit_s in (("idle", header_s), ("header", header_s), ("body", body_s)):
        times_s = [took_s for its_kind, took_s, _ in ended if its_kind == kind]
        worst_s = max(times_s, default=0.0)
        finding.figures[f"{kind}: s to close"] = round(worst_s, 1)
        finding.expect_fast(worst_s <= limit_s + SLACK_S, f"{kind}: closed {worst_s - limit_s:.1f} s late")
    silent = sum(b" 408 " not in said for kind, _, said in ended if kind != "idle")
    finding.expect(not silent, f"{silent} slow senders were not told of their 408")
    beside_ms = percentile_ms(load.tally.gap_s, 99)
    finding.figures |= {"others' gap ms p99": beside_ms, "without them": alone_ms}
    _expect_unchanged(finding, beside_ms, alone_ms)
    return finding


async def _one_sender(
    address: str, place: int, head: bytes, whole: bytes, interval_s: float
) -> tuple[str, float, bytes]:
    kind = ("idle", "header", "body")[place % 3]
    match kind:
        case "idle":
            return kind, *await idle(address)
        case "header":
            return kind, *await send_slowly(address, head, interval_s)
        case _:
            at_once = whole.index(b"\r\n\r\n") + 4
            return kind, *await send_slowly(address, whole, interval_s, at_once=at_once)
