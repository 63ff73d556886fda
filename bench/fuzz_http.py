"""R16: bytes that are nearly HTTP, against a whole server: no crash, no 5xx, memory flat.

The cases are those of tests/server/raw_http.py, by a seed. Exits with 1 if one of them ended wrongly.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Annotated
from urllib.parse import urlsplit

import psutil
import typer
from rich.console import Console
from rich.table import Table

from tests.server.raw_http import Tally, attack, cases
from tests.whole import Server, running

NUM_ROUNDS = 10

CountOption = Annotated[int, typer.Option(min=NUM_ROUNDS, help="how many cases")]
SeedOption = Annotated[int, typer.Option(help="the same seed, the same cases")]
ClientsOption = Annotated[int, typer.Option(min=1, help="cases at a time")]


def resident_mib(server: Server) -> float:
    """Of the front alone."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 2**20


def main(count: CountOption = 50_000, seed: SeedOption = 0, clients: ClientsOption = 64) -> None:
    """Send them; print a table and a line of JSON."""
    table = Table("cases", "silent", "statuses", "wrong", "resident, MiB", "open")
    whole, memory_mib = Tally(), []
    with running("--header-timeout-s", "5", "--body-timeout-s", "5") as server:
        url = urlsplit(server.url)
        stream = cases(seed, count)
        for _ in range(NUM_ROUNDS):
            part = itertools.islice(stream, count // NUM_ROUNDS)
            tally = asyncio.run(attack((str(url.hostname), int(url.port or 0)), part, clients, quiet_s=1.0))
            whole.num_cases += tally.num_cases
            whole.num_silent += tally.num_silent
            whole.statuses += tally.statuses
            whole.wrong += tally.wrong
            assert server.process.poll() is None, server.lines()[-5:]
            assert server.http.get("/health/ready").status_code == 200
            memory_mib.append(round(resident_mib(server), 1))
            statuses = " ".join(f"{status}: {num}" for status, num in sorted(tally.statuses.items()))
            num_open = server.metric("verbatim_open_connections")
            table.add_row(
                str(whole.num_cases), str(tally.num_silent), statuses, str(len(tally.wrong)),
                str(memory_mib[-1]), f"{num_open:.0f}",
            )  # fmt: skip
    Console(width=110).print(table)
    for case, answer in whole.wrong[:10]:
        print(case, answer[:500])
    figures = {
        "bench": "fuzz_http",
        "seed": seed,
        "cases": whole.num_cases,
        "wrong": len(whole.wrong),
        "statuses": dict(sorted(whole.statuses.items())),
        "resident_mib": memory_mib,
    }
    print(json.dumps(figures))
    raise typer.Exit(bool(whole.wrong))


if __name__ == "__main__":
    typer.run(main)
