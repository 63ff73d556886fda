"""`python -m bench.torture`: the rows of reliability, each against real processes, sockets and signals.

Prints a table and, last, a line of JSON; ends with 1 if a row has a miss. At scale 1 the durations and
numbers are those that docs/reliability.md reports, and all rows take about half a day.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench.machine import described, machine
from bench.torture import endurance, faults, injections, integrity, manners, overload
from bench.torture.arena import Arena, Finding, arena

Row = Callable[[Arena], Coroutine[None, None, Finding]]


def rows(minutes: float) -> dict[str, Row]:
    """Every row, in the scoreboard's order."""
    return {
        "R1": integrity.token_integrity,
        "R2": integrity.batch_independence,
        "R3": overload.overload,
        "R4": overload.steady,
        "R5": faults.termination,
        "R6": faults.worker_killed,
        "R7": faults.worker_hung,
        "R8": manners.vanishing,
        "R9": manners.slow_readers,
        "R10": manners.slow_senders,
        "R11": integrity.memory_pressure,
        "R12": injections.one_request_fails,
        "R13": injections.whole_step_fails,
        "R19": endurance.soak,
        "R21": lambda place: endurance.storm(place, minutes),
    }


def show(finding: Finding) -> Table:
    """One row, for a reader."""
    verdict = "[red]missed[/]" if finding.misses else "[yellow]slow[/]" if finding.slow else "[green]holds[/]"
    table = Table("", "", title=f"{finding.row}: {verdict}", title_justify="left", show_header=False)
    for name, figure in finding.figures.items():
        table.add_row(name, str(figure))
    for miss in (*finding.misses, *finding.slow):
        table.add_row("[red]miss[/]", miss)
    return table


def main(
    rows_: Annotated[str, typer.Option("--rows", help="which, as R3,R6; all if absent")] = "",
    scale: Annotated[float, typer.Option(min=0.001, help="of durations and numbers")] = 1.0,
    minutes: Annotated[float | None, typer.Option(help="of the storm; 30 times the scale if absent")] = None,
    seed: Annotated[int, typer.Option(help="of all that is drawn")] = 0,
    longest: Annotated[int | None, typer.Option(help="tokens of an answer at most")] = None,
    output: Annotated[Path | None, typer.Option(help="a file to append the line of JSON to")] = None,
) -> None:
    """Torture a server; print what it held to."""
    known = rows(30 * scale if minutes is None else minutes)
    names = rows_.upper().split(",") if rows_ else list(known)
    if unknown := set(names) - set(known):
        raise typer.BadParameter(f"no such row: {', '.join(unknown)}; there are {', '.join(known)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as by Ctrl-C, its servers end with it
    facts = machine() | {"date": datetime.date.today().isoformat(), "scale": scale, "seed": seed}
    console = Console(width=110)
    print(described(facts))
    findings: list[Finding] = []
    with arena(seed, scale, longest) as place:
        for name in names:
            findings.append(uvloop.run(known[name](place)))
            console.print(show(findings[-1]))
    num_lost = sum(finding.num_lost for finding in findings)
    num_checked = sum(finding.num_checked for finding in findings)
    print(f"R1 over all of it: {num_lost} of {num_checked} answers lost")
    line = json.dumps(
        {
            "bench": "torture",
            **facts,
            "lost": num_lost,
            "checked": num_checked,
            "rows": [dataclasses.asdict(finding) for finding in findings],
        }
    )
    if output is not None:
        with output.open("a") as file:
            file.write(line + "\n")
    print(line)
    raise typer.Exit(any(finding.misses or finding.slow for finding in findings))


if __name__ == "__main__":
    typer.run(main)
