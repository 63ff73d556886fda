"""What a measurement ran on, and the options that the scripts share. Measures nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated

import torch
import typer

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "weights"

ModelArgument = Annotated[Path, typer.Argument(help="a model folder; the embedded model if absent")]
RoundsOption = Annotated[int, typer.Option(min=1, help="how often everything is measured, interleaved")]
ThreadsOption = Annotated[int, typer.Option(min=0, envvar="OMP_NUM_THREADS", help="compute threads")]


def machine() -> dict[str, str | int | float]:
    """The processor, how many cores of it are ours, how busy they are already, and torch's version."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def described(facts: dict[str, str | int | float]) -> str:
    """One line for a reader."""
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
