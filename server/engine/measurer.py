"""The process behind `verbatim bench`: an engine without front or sockets, which does loads and times them.

Run as `python -m server.engine.measurer`: a `WorkerConfig` on standard input, then one `Question` a line; on
standard output an answer a line, as JSON: first `Ready`, or `Refused` with status 2. A process of its own,
since torch belongs there. Decides nothing of what is measured.
"""

from __future__ import annotations

import sys

import msgspec

from model.interface import Roof
from model.roofline import measure_roof
from model.runner import ModelRunner
from server.engine.frames import Ready, WorkerConfig
from server.engine.load import Load, Question, RoofQuestion, Run, run_load
from server.engine.worker import build_engine, generate_one_token, load_model, refusal


class Measurer:
    """A worker's model and engine."""

    def __init__(self, config: WorkerConfig) -> None:
        self.model: ModelRunner = load_model(config)
        self.engine = build_engine(self.model, config)
        generate_one_token(self.model)
        self._next_id = 0

    def answer(self, question: Question) -> Run | Roof:
        """What was asked for."""
        match question:
            case Load():
                first_id, self._next_id = self._next_id, self._next_id + len(question.prompts)
                return run_load(self.engine, question, first_id)
            case RoofQuestion():
                return measure_roof(self.model.decoder, self.model.info)


def say(answer: object) -> None:
    """One line."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """The process; returns its status."""
    try:
        measurer = Measurer(msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig))
    except Exception as error:
        say(refusal(error))
        return 2
    say(Ready(measurer.model.info))
    for line in sys.stdin.buffer:
        say(measurer.answer(msgspec.json.decode(line, type=Question)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
