"""A trace of real traffic, replayed as fast as is asked: goodput, and how long users wait.

The trace is that of Azure's LLM inference (Patel et al. 2024): when each request came, how long its prompt
was and how long its answer. Times and lengths are real, the words are not: prompts are random ids, so that
nothing that remembers prompts helps. Lengths are scaled to the model's context, so that 99 of 100 requests
fit, and the others are cut. The loop is open: a request comes when its time has come, whatever has become of
those before it. Each run begins in the middle of the trace.
"""

from __future__ import annotations

import asyncio
import csv
import json
import random
import time
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bench.machine import described, machine
from bench.torture.arena import Tally, limits_of, percentile_ms
from bench.torture.check import End
from bench.torture.load import STALL_S, Load
from bench.torture.wishes import Limits, Wish
from tests.whole import running

FIGURES = ("offered tokens/s", "goodput tokens/s", "refused %", "first ms p50", "first ms p99", "gap ms p50",
           "gap ms p99")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the trace. Lengths in tokens, as they were."""

    at_s: float  # from the first that is replayed
    num_prompt_tokens: int
    num_new_tokens: int


def read_trace(path: Path) -> list[Arrival]:
    """The second half of a file with the columns TIMESTAMP, ContextTokens and GeneratedTokens."""
    with path.open(newline="") as file:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    rows.sort(key=lambda row: row[0])
    first = rows[len(rows) // 2][0]
    return [Arrival((at - first).total_seconds(), p, n) for at, p, n in rows[len(rows) // 2 :]]


def scaled(trace: list[Arrival], limits: Limits, seed: int) -> list[tuple[float, Wish]]:
    """When, and what: the trace for a model of this context."""
    rng = random.Random(seed)
    room = limits.max_total_tokens
    factor = room / float(np.percentile([a.num_prompt_tokens + a.num_new_tokens for a in trace], 99))
    wishes = []
    for arrival in trace:
        num_prompt = min(room - 1, max(1, round(factor * arrival.num_prompt_tokens)))
        num_new = min(room - num_prompt, max(1, round(factor * arrival.num_new_tokens)))
        prompt = rng.choices(range(1, limits.vocab_size), k=num_prompt)
        wishes.append((arrival.at_s, Wish(prompt, {"max_new_tokens": num_new, "ignore_eos": True})))
    return wishes


async def replay(address: str, wishes: list[tuple[float, Wish]], speed: float, duration_s: float) -> Tally:
    """The trace, so many times as fast, for so long."""
    load = Load(lambda wish: None, address)
    began_s = time.perf_counter()
    for at_s, wish in wishes:
        if at_s / speed > duration_s:
            break
        await asyncio.sleep(max(0.0, began_s + at_s / speed - time.perf_counter()))
        load.start(wish)
    await asyncio.sleep(max(0.0, began_s + duration_s - time.perf_counter()))
    num_good = sum(tokens for _, tokens in load.tally.whole_s)  # within the time
    await load.wait(STALL_S)
    load.tally.num_whole_tokens = num_good
    return load.tally


def figures(tally: Tally, wishes: list[tuple[float, Wish]], speed: float, duration_s: float) -> list[float]:
    """Those of `FIGURES`."""
    offered = sum(wish.parameters["max_new_tokens"] for at_s, wish in wishes if at_s / speed <= duration_s)
    return [
        round(offered / duration_s, 1),
        round(tally.num_whole_tokens / duration_s, 1),
        round(100 * tally.num[End.REFUSED] / max(1, sum(tally.num.values())), 1),
        *(percentile_ms(tally.first_token_s, percent) for percent in (50, 99)),
        *(percentile_ms(tally.gap_s, percent) for percent in (50, 99)),
    ]


def draw(rows: dict[float, list[float]], path: Path) -> None:
    """What is served of what is offered, and the two waits, over the speed."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    throughput, first, gap = figure.subplots(1, 3)
    speeds = list(rows)
    offered, goodput, _, *waits = (list(column) for column in zip(*rows.values(), strict=True))
    throughput.plot(speeds, offered, "--", color="0.6", label="offered")
    throughput.plot(speeds, goodput, "o-", label="served in time")
    throughput.set_title("tokens per second")
    for axes, title, (half, most) in ((first, "first token, ms", waits[:2]), (gap, "gap, ms", waits[2:])):
        axes.plot(speeds, half, "o-", label="median")
        axes.plot(speeds, most, "o-", label="99 %")
        axes.set_title(title)
        axes.set_yscale("log")
    for axes in (throughput, first, gap):
        axes.set_xscale("log", base=2)
        axes.set_xticks(speeds, [f"{speed:g} x" for speed in speeds])
        axes.set_xlabel("speed of the trace")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(
    trace: Annotated[Path, typer.Argument(help="a CSV file: TIMESTAMP, ContextTokens, GeneratedTokens")],
    speeds: Annotated[str, typer.Option(help="how many times as fast, from slow to fast")] = "0.5,1,2,4,8",
    duration: Annotated[float, typer.Option(min=1.0, help="seconds at each speed")] = 60.0,
    seed: Annotated[int, typer.Option(help="of the prompts")] = 0,
    plot: Annotated[Path | None, typer.Option(help="a PNG to draw")] = None,
) -> None:
    """Replay; print a table and a line of JSON."""
    if not trace.is_file():
        print(f"skipped: there is no trace at {trace}")
        return
    facts = machine() | {"date": date.today().isoformat(), "s_each": duration, "seed": seed}
    print(described(facts))
    arrivals = read_trace(trace)
    rows: dict[float, list[float]] = {}
    lost: list[str] = []
    for speed in map(float, speeds.split(",")):
        with running() as server:
            wishes = scaled(arrivals, asyncio.run(limits_of(server.url)), seed)
            tally = uvloop.run(replay(server.url, wishes, speed, duration))
        rows[speed] = figures(tally, wishes, speed, duration)
        lost += tally.examples
    table = Table("speed", *FIGURES)
    for speed, row in rows.items():
        table.add_row(f"{speed:g}", *(f"{value:,.1f}" for value in row))
    Console(width=110).print(table)
    if lost:
        print("\n".join(lost))
    if plot is not None:
        draw(rows, plot)
    named = {speed: dict(zip(FIGURES, row, strict=True)) for speed, row in rows.items()}
    print(json.dumps({"bench": "trace", **facts, "trace": trace.name, "lost": len(lost), "speeds": named}))
    raise typer.Exit(bool(lost))


if __name__ == "__main__":
    typer.run(main)
