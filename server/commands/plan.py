"""`verbatim plan`: what a model will take of memory, and how much it can hold, before it is loaded.

Decides nothing: the figures are those by which a worker divides its memory.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from model.interface import ModelInfo
from server import console
from server.api.info import MemoryAnswer
from server.commands.shared import ENGINE_SETTINGS, fail, model_folder, with_settings, worker_config
from server.engine.frames import Ready, Refused, WorkerConfig
from server.settings import Settings


@with_settings(*ENGINE_SETTINGS)
def plan(
    settings: Settings,
    model_dir: Annotated[
        Path | None, typer.Argument(help="a model folder; the embedded model if absent")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one line of JSON in place of tables")] = False,
) -> None:
    """Say what a model will take of memory, and how many sequences it can hold. No weights are read."""
    info = _planned(worker_config(settings, model_folder(model_dir, settings)))
    if as_json:
        facts = {
            "model_id": info.model_id,
            "model_type": info.model_type,
            "model_dtype": info.dtype,
            "model_device_type": info.device,
            "num_parameters": info.num_parameters,
            "max_total_tokens": info.max_total_tokens,
            "memory": MemoryAnswer.of(info.memory).model_dump(),
        }
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        console.show_plan(info, settings.max_batch_tokens, settings.max_num_seqs)


def _planned(config: WorkerConfig) -> ModelInfo:
    """What a worker with this configuration would load."""
    process = subprocess.run(
        [sys.executable, "-m", "server.engine.planner"],
        input=msgspec.json.encode(config),
        stdout=subprocess.PIPE,
        check=False,
    )
    if process.returncode:
        fail(f"the planner ended with status {process.returncode}")
    answer = msgspec.json.decode(process.stdout, type=Ready | Refused)
    if isinstance(answer, Refused):
        fail(answer.reason)
    return answer.info
