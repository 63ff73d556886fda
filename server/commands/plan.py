"""`verbatim plan` and `verbatim inspect`: what a model will take of memory, and what its folder holds.

Decide nothing: the figures are those by which a worker divides its memory, and no weights are read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from model.interface import FolderReport, ModelInfo
from server import console
from server.api.info import MemoryAnswer
from server.commands.shared import ENGINE_SETTINGS, ask_planner, model_folder, with_settings, worker_config
from server.settings import Settings

ModelArgument = Annotated[
    Path | None, typer.Argument(help="a model folder, or an id on the hub; absent: the embedded model")
]
JsonOption = Annotated[bool, typer.Option("--json", help="one line of JSON in place of tables")]


@with_settings(*ENGINE_SETTINGS)
def plan(
    settings: Settings,
    model_dir: ModelArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a model will take of memory, and how many sequences it can hold. No weights are read."""
    info = ask_planner("plan", worker_config(settings, model_folder(model_dir, settings)), ModelInfo)
    if as_json:
        facts = {
            "model_id": info.model_id,
            "model_type": info.model_type,
            "model_dtype": info.dtype,
            "quantization": info.quantization,
            "model_device_type": info.device,
            "num_parameters": info.num_parameters,
            "max_total_tokens": info.max_total_tokens,
            "memory": MemoryAnswer.of(info.memory).model_dump(),
        }
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        console.show_plan(info, settings.max_batch_tokens, settings.max_num_seqs)


@with_settings("config")
def inspect(
    settings: Settings,
    model_dir: ModelArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a model folder holds: its family and parts, and what is unusual. No weights are read."""
    config = worker_config(settings, model_folder(model_dir, settings))
    report = ask_planner("inspect", config, FolderReport)
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        console.show_report(config.model_id, report)
