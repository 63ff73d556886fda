"""R14 and R17: how long what is wrong takes to be refused: broken model folders, impossible numbers.

The folders are those of tests/model/test_hostile_folders.py, each served by the real command; the numbers
are every number of the wire's parameters times those of tests/server/api/test_hostile.py.
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import described, machine
from model.checkpoint import INDEX, WEIGHTS
from model.loader import DECIDING_FILES
from tests.model.folders import write_folder
from tests.model.test_hostile_folders import BROKEN, FIRST, SECOND, Spoil
from tests.server.api.test_hostile import INTEGERS, NO_INTEGERS, NO_JSON, NO_NUMBERS, send_to
from tests.server.api.test_parameters import FLOAT_FIELDS, INT_FIELDS
from tests.whole import command, running

EveryOption = Annotated[int, typer.Option(min=1, help="take one folder of so many")]

FILES = (*DECIDING_FILES, WEIGHTS, INDEX, FIRST, SECOND)
MAX_FOLDER_S, MAX_NUMBER_MS = 10.0, 100.0


def refused_folder(spoil: Spoil) -> tuple[float, float, str]:
    """Serve a folder that is spoilt so; seconds, those of processors, and what is wrong with how it ended."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        write_folder(folder)
        spoil(folder)
        began_s, before_s = time.monotonic(), children_s()
        ended = subprocess.run(
            command("serve", str(folder), "--port", "0"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        took_s, worked_s = time.monotonic() - began_s, children_s() - before_s
    said = (ended.stdout + ended.stderr).strip()
    wrong = [
        what
        for what, is_so in (
            ("status 0", ended.returncode == 0),
            (f"{len(said.splitlines())} lines", len(said.splitlines()) != 1),
            ("no file", not any(file in said for file in FILES)),
            ("was ready", '"message":"ready"' in said),
            (f"over {MAX_FOLDER_S:g} s", took_s > MAX_FOLDER_S),
        )
        if is_so
    ]
    return took_s, worked_s, ", ".join(wrong)


def children_s() -> float:
    """The processors' time of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def refused_numbers() -> dict[str, float]:
    """Send each number for each parameter; figures of the answers with a status of 4xx."""
    literals = {name: [*map(str, INTEGERS), *NO_INTEGERS, *NO_JSON] for name in INT_FIELDS}
    literals |= {name: [*NO_NUMBERS, *NO_JSON] for name in FLOAT_FIELDS}
    times_ms: list[float] = []
    with running() as server:
        front = server.front()
        for round_ in range(2):  # the first round's memory is that of what is used for the first time
            if round_ == 1:
                before = front.memory_info().rss
            for name, values in literals.items():
                for literal in values:
                    began_s = time.perf_counter()
                    answer = send_to(server.http, name, literal)
                    if 400 <= answer.status_code < 500:
                        times_ms.append((time.perf_counter() - began_s) * 1000)
                    assert answer.status_code < 500, (name, literal, answer.text)
        grown = front.memory_info().rss - before
    times_ms.sort()
    return {
        "refused numbers": len(times_ms),
        "ms, median": round(times_ms[len(times_ms) // 2], 2),
        "ms, slowest": round(times_ms[-1], 2),
        "MB that the front grew": round(grown / 1e6, 2),
    }


def main(every: EveryOption = 1) -> None:
    """Serve and send them all; print tables and a line of JSON; end with 1 if one is missed."""
    facts = machine()
    print(described(facts))
    console = Console(width=110)
    table = Table("folder", "s", "processors' s", "wrong")
    taken: list[float] = []
    worked: list[float] = []
    misses = []
    for name, (spoil, _) in list(BROKEN.items())[::every]:
        took_s, worked_s, wrong = refused_folder(spoil)
        taken.append(took_s)
        worked.append(worked_s)
        if wrong:
            misses.append(f"{name}: {wrong}")
        table.add_row(name, f"{took_s:.2f}", f"{worked_s:.2f}", wrong)
    console.print(table)
    taken.sort()
    figures: dict[str, float] = {
        "refused folders": len(taken),
        "s, median": round(taken[len(taken) // 2], 2),
        "s, slowest": round(taken[-1], 2),
        "s of processors, most": round(max(worked), 2),
    }
    figures |= refused_numbers()
    if figures["ms, slowest"] > MAX_NUMBER_MS:
        misses.append(f"a number took {figures['ms, slowest']} ms")
    for figure, value in figures.items():
        print(f"{figure}: {value}")
    print(json.dumps({"bench": "refusals", **facts, **figures, "misses": misses}))
    raise typer.Exit(bool(misses))


if __name__ == "__main__":
    typer.run(main)
