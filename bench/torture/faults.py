"""R5, R6, R7: real signals to the front and to the worker, and what the streams under way see of them.

Decides when who is hit. What a stream must be, check.py says: whole and equal, as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable

import psutil

from bench.torture.arena import Arena, Finding, poll
from bench.torture.clients import probing
from bench.torture.load import Load, loading
from bench.torture.wire import Cut, Head, fetch, metrics
from bench.torture.wishes import Wish
from tests.whole import Server

EXIT_LIMIT_S = 2.0
WATCHDOG_LIMIT_S = 10.0


# ---- R5 ---------------------------------------------------------------------------------------------------


async def termination(arena: Arena) -> Finding:
    """R5: SIGTERM idle, under load, and with streams that take longer than the grace."""
    finding = Finding("R5")
    rng = random.Random(arena.seed)
    mixed = await arena.mixed(300, 24)
    long = await arena.steady(arena.num_streams, arena.limits.max_total_tokens)
    idle_s: list[float] = [0.0]
    after_s: list[float] = []
    ready_s: list[float] = []
    num_failed = 0
    for _ in range(arena.times(20)):
        if not arena.is_short:  # tests/test_whole.py has it in the suite
            with arena.server() as server:
                server.process.send_signal(signal.SIGTERM)
                idle_s.append(await _exit_s(server, finding))
        with arena.server() as server:
            async with loading(arena, server.url) as load:
                await _start_some(load, rng.choices(mixed, k=arena.num_streams - 2) + long[:2], rng)
                ready_s.append(await _drain(server, mixed[0], finding))
            finding.take(load.tally, may_refuse=False)
            after_s.append(await _exit_s(server, finding))
        with arena.server("--grace-s", "0") as server:  # the answers of a short run are over in 0.1 s
            async with loading(arena, server.url) as load:
                await _start_some(load, long, rng)
                server.process.send_signal(signal.SIGTERM)
            finding.take(load.tally, may_fail=True)
            num_failed += int(load.tally.counts().get("failed", 0))
            await _exit_s(server, finding)
    finding.figures |= {
        "idle: s to exit": round(max(idle_s), 2),
        "load: s to exit after the last stream": round(max(after_s), 2),
        "load: ms to unready": round(1000 * max(ready_s), 1),
    }
    finding.expect(num_failed > 0, "no stream lived past the grace, so nothing was shown of it")
    finding.expect_fast(max(idle_s) <= EXIT_LIMIT_S, f"idle, it took over {EXIT_LIMIT_S} s to exit")
    finding.expect_fast(max(ready_s) <= 0.1, "it was ready over 100 ms after SIGTERM")
    return finding


async def _start_some(load: Load, wishes: list[Wish], rng: random.Random) -> None:
    for wish in wishes:
        load.start(wish, is_stream=rng.random() < 0.8)
    await load.until_tokens(rng.randint(1, 10 * len(wishes)))


async def _drain(server: Server, wish: Wish, finding: Finding) -> float:
    """SIGTERM under load: seconds until it is not ready; then new requests are refused as they should be."""
    server.process.send_signal(signal.SIGTERM)
    answers: list[Head] = []

    async def is_unready() -> bool:
        answers.append((await fetch(server.url, "/health/ready"))[0])
        return answers[-1].status == 503

    try:
        took_s = await poll(is_unready, 10.0)
        head, _ = await fetch(server.url, "/generate", wish.body(is_stream=True))
    except (OSError, Cut):  # all streams had ended, and it is gone
        return 0.0
    finding.expect(head.status == 503, f"a new request while draining got {head.status}")
    finding.expect("retry-after" in head.headers, "a refusal while draining has no Retry-After")
    finding.expect(head.headers.get("connection") == "close", "a refusal while draining keeps the connection")
    finding.expect(took_s is not None, "it stayed ready after SIGTERM")
    return took_s or 0.0


async def _exit_s(server: Server, finding: Finding) -> float:
    """From now until the process is gone."""

    async def is_gone() -> bool:
        return server.process.poll() is not None

    took_s = await poll(is_gone, 10.0)
    finding.expect(took_s is not None, "it did not exit within 10 s")
    return took_s or 10.0


# ---- R6 ---------------------------------------------------------------------------------------------------


async def _in_decode(load: Load, server: Server, rng: random.Random) -> None:
    await load.until_tokens(rng.randint(1, 6 * load.num_live))
    server.signal_worker(signal.SIGKILL)


async def _in_prefill(load: Load, server: Server, rng: random.Random) -> None:
    async def all_are_taken() -> bool:  # while there is no worker, newcomers are refused
        series = await metrics(server.url)
        return series["vllm:num_requests_running"] + series["vllm:num_requests_waiting"] >= load.num_live

    await poll(all_are_taken, 10.0)
    await asyncio.sleep(rng.uniform(0.0, 0.2))
    server.signal_worker(signal.SIGKILL)


async def _twice(load: Load, server: Server, rng: random.Random) -> None:
    await _in_decode(load, server, rng)
    await load.until_tokens(4 * load.num_live)  # each has made some progress, not merely one of them
    server.signal_worker(signal.SIGKILL)


async def _while_it_restarts(load: Load, server: Server, rng: random.Random) -> None:
    dead = server.worker()
    await _in_decode(load, server, rng)

    async def is_replaced() -> bool:
        worker = server.worker()
        return worker is not None and worker != dead

    await poll(is_replaced, 10.0)
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    server.signal_worker(signal.SIGKILL)


Blow = Callable[[Load, Server, random.Random], Awaitable[None]]
BLOWS: dict[str, tuple[tuple[str, ...], Blow]] = {  # the server's flags, and what happens to its worker
    "decode": ((), _in_decode),
    "queued": (("--max-num-seqs", "4"), _in_decode),
    "prefill": (("--max-batch-tokens", "64"), _in_prefill),
    "twice": ((), _twice),
    "in restart": ((), _while_it_restarts),
}


async def worker_killed(arena: Arena, names: tuple[str, ...] = tuple(BLOWS)) -> Finding:
    """R6: SIGKILL of the worker; every stream goes on as if nothing had happened."""
    finding = Finding("R6")
    rng = random.Random(arena.seed)
    num_each = arena.num_streams // 2
    of_one_answer = [wish for wish in await arena.mixed(300, 24) if wish.can_stream]
    mixed = await arena.steady(num_each, 200, 200) + of_one_answer[:num_each]
    for name in names:
        wishes = mixed
        flags, blow = BLOWS[name]
        num_whole = 0
        took_s: list[float] = []
        with arena.server(*flags) as server:
            for number in range(arena.times(20)):
                if name == "prefill":  # prompts that no cache has
                    wishes = await arena.steady(arena.num_streams, 8, 300, number + 1)
                again_s, is_whole = await _one_blow(arena, server, wishes, blow, rng, finding)
                num_whole += is_whole
                took_s.append(again_s)
        finding.figures[f"{name}: rounds whole"] = f"{num_whole}/{arena.times(20)}"
        finding.figures[f"{name}: s to serve again"] = round(max(took_s), 2)
        limit_s = server.start_s + 2.0
        finding.expect_fast(max(took_s) <= limit_s, f"{name}: it took over {limit_s:.1f} s to serve again")
    return finding


async def _one_blow(
    arena: Arena,
    server: Server,
    wishes: list[Wish],
    blow: Blow,
    rng: random.Random,
    finding: Finding,
) -> tuple[float, bool]:
    """Seconds from the (last) blow to the next token, and whether all ended whole."""
    await _until_ready(server, finding)
    async with loading(arena, server.url) as load:
        for wish in wishes:
            load.start(wish, is_stream=rng.random() < 0.8)
        await blow(load, server, rng)
        began_s = time.perf_counter()
        await asyncio.sleep(0.05)  # what the dead one had said already
        await load.until_tokens(1, 60.0)
        took_s = time.perf_counter() - began_s
    finding.take(load.tally, may_refuse=False)
    return took_s, load.tally.num_whole == len(wishes)


async def _until_ready(server: Server, finding: Finding) -> None:
    async def is_ready() -> bool:
        return (await fetch(server.url, "/health/ready"))[0].status == 200

    if await poll(is_ready, 30.0) is None:
        finding.expect(False, "it was not ready 30 s after the last fault")


# ---- R7 ---------------------------------------------------------------------------------------------------


async def worker_hung(arena: Arena, watchdog_s: float = 8.0) -> Finding:
    """R7: SIGSTOP is found and recovered from; neither overload nor the longest prefill is taken for it."""
    finding = Finding("R7")
    room = arena.limits.max_total_tokens
    wishes = await arena.steady(arena.num_streams, 200, 200)
    found_s: list[float] = []
    # Eight of the longest prompts fit into one step, and twice as many clients as sequences may run.
    flags = ("--max-batch-tokens", str(8 * room), "--max-num-seqs", str(arena.num_streams))
    with arena.server(*flags, "--max-waiting", "4", "--watchdog-s", str(watchdog_s)) as server:
        await _no_false_alarm(arena, server, finding)
        for _ in range(arena.times(20)):
            await _until_ready(server, finding)
            async with loading(arena, server.url) as load:
                for wish in wishes:
                    load.start(wish)
                await load.until_tokens(arena.num_streams)
                stopped = server.signal_worker(signal.SIGSTOP)
                found_s.append(await _until_gone(stopped, finding))
            finding.take(load.tally, may_refuse=False)
    finding.figures["s to find"] = round(max(found_s), 2)
    finding.expect(max(found_s) <= WATCHDOG_LIMIT_S + 0.5, f"found after more than {WATCHDOG_LIMIT_S} s")
    return finding


async def _until_gone(worker: psutil.Process | None, finding: Finding) -> float:
    async def is_gone() -> bool:
        return worker is None or not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

    took_s = await poll(is_gone, 2 * WATCHDOG_LIMIT_S)
    if took_s is None and worker is not None:
        finding.expect(False, "a stopped worker was never found")
        worker.resume()
    return took_s or 2 * WATCHDOG_LIMIT_S


async def _no_false_alarm(arena: Arena, server: Server, finding: Finding) -> None:
    num_clients = 2 * arena.num_streams
    # More prompts than the prefix cache can hold, so that each is computed each time.
    num_prompts = 4 if arena.is_short else num_clients
    prompts = await arena.steady(num_prompts, 4, arena.limits.max_total_tokens - 8)
    duration_s = 1.0 if arena.is_short else arena.seconds(3600, 60)
    first = server.worker()
    async with probing(server.url) as probes, loading(arena, server.url) as load:
        await load.closed(prompts, num_clients, duration_s)
    finding.take(load.tally)
    num_alarms = int(server.worker() != first) + probes.num_refused["/health/ready"]
    finding.figures |= {"s of overload": round(duration_s), "false alarms": num_alarms}
    finding.expect(num_alarms == 0, f"{num_alarms} false alarms")
