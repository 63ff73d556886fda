"""How long a tokenizer takes for its worst texts: one character, over and over, up to a million times.

If a character costs the same in each, nothing is quadratic, and a text need not be cut or refused.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import RoundsOption, described, machine
from server.text.tokenizer import Tokenizer

CHARACTERS = "a0 \n\t.=\u0301\u00e9\u4e2d\u0e01\u200b\U0001f44d"
LENGTHS = (10**4, 10**5, 10**6)
LIMIT = 3.0


def ns_per_character(tokenizer: Tokenizer, character: str, length: int) -> float:
    """Of one text."""
    text = character * length
    began_s = time.perf_counter()
    tokenizer.encode(text)
    return 1e9 * (time.perf_counter() - began_s) / length


def bench(folders: list[Path], rounds: int) -> None:
    """Print a table of each tokenizer's worst characters, and a line of JSON of all."""
    facts = machine() | {"rounds": rounds}
    print(described(facts))
    table = Table("tokenizer", "character", *(f"ns at {length:,}" for length in LENGTHS), "most / least")
    figures: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        tokenizer = Tokenizer(folder)
        of_character = figures[folder.name] = {
            ascii(character): [
                round(median(ns_per_character(tokenizer, character, length) for _ in range(rounds)), 1)
                for length in LENGTHS
            ]
            for character in CHARACTERS
        }
        for name, taken in sorted(of_character.items(), key=lambda entry: _spread(entry[1]))[-3:]:
            table.add_row(folder.name, name, *map(str, taken), f"{_spread(taken):.1f}")
    Console(width=110).print(table)
    worst = max(_spread(taken) for by_character in figures.values() for taken in by_character.values())
    print(f"the most over the least of one character: {worst:.1f}; limit {LIMIT:g}")
    print(json.dumps({"bench": "worst_words", **facts, "ns": figures}))


def _spread(taken: list[float]) -> float:
    return max(taken) / min(taken)


def main(
    folders: Annotated[list[Path], typer.Argument(help="folders with a tokenizer")], rounds: RoundsOption = 3
) -> None:
    """Measure tokenizers by their worst texts."""
    bench(folders, rounds)


if __name__ == "__main__":
    typer.run(main)
