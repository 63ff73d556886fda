"""R19, R21: hours of everything, after which nothing has grown; and the storm, of all faults at once.

Decides what goes on together, and what is looked at before and after.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable

import numpy as np

from bench.torture.arena import Arena, Finding, poll
from bench.torture.clients import (
    MANNERS,
    idle,
    probing,
    read_slowly,
    send_drawn,
    send_rubbish,
    send_slowly,
)
from bench.torture.counted_front import PROGRAM, TASKS
from bench.torture.load import Load, loading, together
from bench.torture.manners import until_idle
from bench.torture.overload import capacity
from bench.torture.wire import Cut, fetch, metrics, request
from bench.torture.wishes import Wish
from tests.drawn import drawn
from tests.server.schema_cases import Document
from tests.whole import Server

CYCLE_S = 60.0
BACK_LIMIT_S = 60.0
IMPATIENT = ("--write-timeout-s", "5", "--header-timeout-s", "5", "--body-timeout-s", "5")


# ---- R19 --------------------------------------------------------------------------------------------------


async def soak(arena: Arena) -> Finding:
    """R19: mixed load in cycles; after each, all is idle, and what is held then must not grow."""
    finding = Finding("R19")
    rng = random.Random(arena.seed)
    wishes = await arena.mixed(300, 24)
    samples: list[dict[str, float]] = []
    cycle_s, duration_s = (1.0, 0.0) if arena.is_short else (CYCLE_S, arena.seconds(7200, 0.0))
    with arena.server(program=PROGRAM) as server:
        began_s = time.perf_counter()
        while len(samples) < 4 or time.perf_counter() - began_s < duration_s:
            async with loading(arena, server.url) as load:
                end_s = time.perf_counter() + cycle_s
                _, _, bad = await asyncio.gather(
                    load.closed(rng.sample(wishes, len(wishes)), 2 * arena.num_streams, cycle_s),
                    _leaving(load, wishes, rng, end_s),
                    send_rubbish(server.url, rng.getrandbits(32), end_s),
                )
            finding.take(load.tally)
            finding.expect(not bad, f"{len(bad)} bad answers to rubbish: {bad[:3]}")
            finding.expect(await until_idle(server) is not None, "idle, it holds blocks")
            samples.append({"hour": (time.perf_counter() - began_s) / 3600, **await _held(server)})
    settled = samples[len(samples) // 3 :]
    hours = np.array([sample.pop("hour") for sample in settled])
    for name in settled[0]:
        values = np.array([sample[name] for sample in settled])
        slope, noise = _slope(hours, values)
        finding.figures[f"{name} /h"] = f"{slope:+.3g} ± {noise:.2g}"
        # The middle of each quarter of this time: growth that ends shows in these, not in one slope.
        finding.figures[f"{name} by quarter"] = " ".join(
            f"{np.median(part):.1f}" for part in np.array_split(values, 4) if len(part)
        )
        has_grown = slope > 3 * noise and values[-1] > 1.01 * values[0]
        finding.expect_fast(not has_grown, f"{name} grows by {slope:.3g} an hour")
    return finding


def _slope(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Of the line of least squares, and its standard error."""
    centred = hours - hours.mean()
    slope = float(centred @ (values - values.mean()) / (centred @ centred))
    residuals = values - values.mean() - slope * centred
    freedom = max(1, len(values) - 2)
    return slope, float(np.sqrt(residuals @ residuals / freedom / (centred @ centred)))


async def _held(server: Server) -> dict[str, float]:
    """What the two processes hold."""
    series = await metrics(server.url)
    held: dict[str, float] = {"series": len(series)}
    if TASKS in series:
        held["tasks"] = series[TASKS]
    for name, process in (("front", server.front()), ("worker", server.worker())):
        if process is not None:
            held[f"{name} MB"] = process.memory_info().rss / 1e6
            held[f"{name} descriptors"] = process.num_fds()
            held[f"{name} threads"] = process.num_threads()
    return held


# ---- R21 --------------------------------------------------------------------------------------------------


async def storm(arena: Arena, minutes: float) -> Finding:
    """R21: overload, deaths, departures, the slow, rubbish and the cases of R15 together; then calm."""
    finding = Finding("R21")
    rng = random.Random(arena.seed)
    wishes = await arena.mixed(300, 24)
    duration_s = 60 * minutes
    with arena.server(*IMPATIENT, "--max-waiting", str(2 * arena.num_streams)) as server:
        answers_per_s, _ = await capacity(arena, server, wishes, arena.seconds(30, 1))
        await until_idle(server)
        document = Document(json.loads((await fetch(server.url, "/openapi.json"))[1]))
        cases = drawn(document.requests(), arena.times(2000, 50), arena.seed)
        before = await _held(server)
        async with probing(server.url) as probes, loading(arena, server.url) as load:
            end_s = time.perf_counter() + duration_s
            _, _, bad, (num_cases, wrong), _, num_deaths = await asyncio.gather(
                load.open(wishes, 3 * answers_per_s, duration_s, arena.seed),
                _leaving(load, wishes, rng, end_s),
                send_rubbish(server.url, arena.seed, end_s),
                send_drawn(server.url, document, cases, end_s),
                _slow(server.url, wishes, rng, end_s),
                _deaths(server, rng, end_s, duration_s),
            )
        finding.take(load.tally)
        back_s = await _back_to_baseline(arena, server, wishes, before)
        after = await _held(server)
    finding.figures |= {
        "minutes": round(minutes, 2),
        "tokens": load.tally.num_tokens,
        "deaths": num_deaths,
        "requests of the document": num_cases,
        "probes without an answer": probes.num_silent,
        "s back to baseline": "never" if back_s is None else round(back_s, 1),
        **{f"{name} before / after": f"{before[name]:.0f} / {after.get(name, 0):.0f}" for name in before},
    }
    finding.expect(num_deaths > 0, "no worker died")
    finding.expect(not bad, f"{len(bad)} bad answers to rubbish: {bad[:3]}")
    finding.expect(not wrong, f"{len(wrong)} answers that the document does not know: {wrong[:3]}")
    finding.expect(not probes.num_refused["/health/live"], "it was said to be dead")
    finding.expect(back_s is not None, f"not back to the baseline after {BACK_LIMIT_S:.0f} s")
    return finding


async def _until(end_s: float, pause_s: Callable[[], float], act: Callable[[], Awaitable[object]]) -> None:
    """Act now and then, each time without waiting for the last; then wait for all."""
    acting: set[asyncio.Task[object]] = set()
    while (left_s := end_s - time.perf_counter()) > 0:
        acting.add(asyncio.ensure_future(act()))
        await asyncio.sleep(min(pause_s(), left_s))
    for task in acting:
        task.cancel()
    for error in await asyncio.gather(*acting, return_exceptions=True):
        if isinstance(error, Exception) and not isinstance(error, OSError | Cut):
            raise error


async def _leaving(load: Load, wishes: list[Wish], rng: random.Random, end_s: float) -> None:
    async def leave() -> None:
        load.start(
            rng.choice(wishes),
            is_stream=rng.random() < 0.7,
            leave_after_s=rng.uniform(0.0, 2.0),
            manner=rng.choice(MANNERS),
        )

    await _until(end_s, lambda: rng.expovariate(5.0), leave)


async def _slow(address: str, wishes: list[Wish], rng: random.Random, end_s: float) -> None:
    """Slow readers, slow senders and idle sockets, a few a second."""
    whole = request("POST", "/generate", wishes[0].body(is_stream=True))
    large = Wish(list(range(1, 40)), {"max_new_tokens": 300, "ignore_eos": True, "top_n_tokens": 20})

    async def be_slow() -> None:
        match rng.randrange(3):
            case 0:
                await read_slowly(address, large)
            case 1:
                await send_slowly(address, whole)
            case _:
                await idle(address)

    await _until(end_s, lambda: rng.expovariate(2.0), be_slow)


async def _deaths(server: Server, rng: random.Random, end_s: float, duration_s: float) -> int:
    """SIGKILL of the worker, once in half a minute or so; each only when the last has been survived."""
    num_deaths = 0
    longest_s = min(40.0, duration_s / 2)
    while end_s - time.perf_counter() > longest_s / 4:
        await asyncio.sleep(rng.uniform(longest_s / 4, longest_s))
        head, _ = await fetch(server.url, "/health/ready")
        if head.status == 200:
            num_deaths += server.signal_worker(signal.SIGKILL) is not None
    return num_deaths


async def _back_to_baseline(
    arena: Arena, server: Server, wishes: list[Wish], before: dict[str, float]
) -> float | None:
    """Seconds until it is ready, idle, holds no more descriptors than before, and answers as it should."""

    async def is_back() -> bool:
        if (await fetch(server.url, "/health/ready"))[0].status != 200:
            return False
        held = await _held(server)
        names = ("front descriptors", "worker descriptors")
        if any(held.get(name, 0) > before[name] + 4 for name in names):
            return False
        tally = await together(arena, server.url, wishes[:8])
        return tally.num_whole == 8 and await until_idle(server, 1.0) is not None

    return await poll(is_back, BACK_LIMIT_S)
