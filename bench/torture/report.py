"""`python -m bench.torture.report FILE…`: the table of docs/reliability.md, from the lines of `--output`.

Of each row the last run counts; nothing is measured here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def table(lines: list[dict[str, Any]]) -> str:
    """In Markdown: a row, its figures, its misses, and on what it ran."""
    latest: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for line in lines:
        for finding in line["rows"]:
            latest[finding["row"]] = (line, finding)
    rows = ["| row | figures | misses | run |", "| --- | --- | --- | --- |"]
    for name in sorted(latest, key=lambda row: int(row[1:])):
        line, finding = latest[name]
        figures = "; ".join(f"{what} {figure}" for what, figure in finding["figures"].items())
        misses = "; ".join([*finding["misses"], *finding["slow"]]) or "none"
        run = ", ".join(f"{what} {line[what]}" for what in ("date", "cpu", "cores", "load", "scale"))
        rows.append(f"| {name} | {figures} | {misses} | {run} |")
    return "\n".join(rows)


def main(files: Annotated[list[Path], typer.Argument(help="lines of JSON")]) -> None:
    """Print the table."""
    print(table([json.loads(line) for file in files for line in file.read_text().splitlines()]))


if __name__ == "__main__":
    typer.run(main)
