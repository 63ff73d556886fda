"""What a measurement ran on, and the options that the scripts share. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from server.commands.machine import machine as bare_machine

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "weights"

ModelArgument = Annotated[Path, typer.Argument(help="a model folder; the embedded model if absent")]
RoundsOption = Annotated[int, typer.Option(min=1, help="how often everything is measured, interleaved")]
ThreadsOption = Annotated[int, typer.Option(min=0, envvar="OMP_NUM_THREADS", help="compute threads")]


def machine() -> dict[str, str | int | float]:
    """The processor, how many cores of it are ours, how busy they are already, and torch's version."""
    return bare_machine() | {"torch": torch.__version__}


def described(facts: dict[str, str | int | float]) -> str:
    """One line for a reader."""
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())
