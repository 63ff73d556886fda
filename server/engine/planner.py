"""The process behind `verbatim plan` and `verbatim inspect`: says what a worker would load; loads nothing.

Run as `python -m server.engine.planner QUESTION`: a `WorkerConfig` on standard input, the answer on standard
output, as JSON; a `Refused` if the status is 2. A process of its own, since torch belongs there, and so that
it measures what a worker holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from model.inspection import inspect_folder
from model.interface import FolderReport, ModelInfo
from model.runner import ModelRunner
from server.engine.frames import WorkerConfig
from server.engine.worker import refusal, runner_options


def plan(config: WorkerConfig) -> ModelInfo:
    """What a worker with this configuration would serve."""
    return ModelRunner.plan(Path(config.model_dir), runner_options(config))


def inspect(config: WorkerConfig) -> FolderReport:
    """What the folder holds."""
    return inspect_folder(Path(config.model_dir))


QUESTIONS = {"plan": plan, "inspect": inspect}


def main() -> int:
    """The process; returns its status."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerConfig)
    try:
        answer, status = QUESTIONS[sys.argv[1]](config), 0
    except Exception as error:
        answer, status = refusal(error), 2
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return status


if __name__ == "__main__":
    sys.exit(main())
