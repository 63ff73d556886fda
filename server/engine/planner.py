"""The process behind `verbatim plan`: a worker that says what it would load, and reads no weights.

Run as `python -m server.engine.planner`: a `WorkerConfig` on standard input, `Ready` or `Refused` on standard
output, as JSON. A process of its own, since torch belongs there, and so that it measures what a worker holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from model.runner import ModelRunner
from server.engine.frames import Ready, Refused, WorkerConfig
from server.engine.worker import refusal, runner_options


def main() -> None:
    """The process."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerConfig)
    answer: Ready | Refused
    try:
        answer = Ready(ModelRunner.plan(Path(config.model_dir), runner_options(config)))
    except Exception as error:
        answer = refusal(error)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
