"""What a step costs beside the model: schedule, update and the frame to the front, around a model of no cost.

Prints a table over running and waiting sequences, and last a line of JSON. Needs no model folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import described, machine
from model.interface import SampledToken, StepItem, StepOutput
from model.sampling.sampling_params import SamplingParams
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.frames import Stepped, encode
from server.engine.heartbeat import Heartbeat
from server.engine.request import GenerationRequest, Progress
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence as EngineSequence

BLOCK_SIZE = 16
PROMPT_TOKENS = 64
RUNNING = (1, 8, 32, 64, 128, 256)
WAITING = (0, 10_000)


class NoModel:
    """Chooses token 7 at once; its time does not count."""

    def __init__(self) -> None:
        self.took_s = 0.0
        self._output = StepOutput(tokens=(SampledToken(token_id=7, logprob=-1.25),))

    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        """The same output for each."""
        began_s = time.perf_counter()
        outputs = [self._output] * len(items)
        self.took_s += time.perf_counter() - began_s
        return outputs


def step_us(num_running: int, num_waiting: int, num_steps: int) -> float:
    """The median of so many decode steps, in microseconds."""
    num_tokens = PROMPT_TOKENS + num_steps + 2
    blocks = BlockManager((num_running + 2) * (num_tokens // BLOCK_SIZE + 2), BLOCK_SIZE)
    scheduler = Scheduler(blocks, max_batch_tokens=num_running * PROMPT_TOKENS, max_num_seqs=num_running)
    model, heartbeat = NoModel(), Heartbeat.create(num_running)

    def begin(sequences: Sequence[EngineSequence]) -> None:
        heartbeat.begin_step([sequence.id for sequence in sequences])

    engine = Engine(model, scheduler, on_plan=begin)  # type: ignore[arg-type]  # it has no info, nor needs it
    for sequence_id in range(num_running + num_waiting):
        request = GenerationRequest(
            prompt_ids=(sequence_id, *range(PROMPT_TOKENS - 1)),
            sampling=SamplingParams(),
            max_new_tokens=num_steps + 2,
        )
        engine.add(sequence_id, request, Progress(arrival_s=0.0))
    engine.step()
    samples = []
    for _ in range(num_steps):
        model.took_s = 0.0
        began_s = time.perf_counter()
        news = engine.step()
        encode(Stepped(news, engine.stats()))
        samples.append(time.perf_counter() - began_s - model.took_s)
        if len(news) != num_running:
            raise RuntimeError(f"{len(news)} sequences had news, of {num_running}")
    heartbeat.close()
    return 1e6 * median(samples)


def main(steps: Annotated[int, typer.Option(min=10, help="steps of each measurement")] = 500) -> None:
    """Measure the engine's own part of a step; print a table and a line of JSON."""
    facts: dict[str, str | int | float] = machine() | {"steps": steps}
    print(described(facts))
    table = Table("running", *(f"µs a step, {n:,} waiting" for n in WAITING), "µs a sequence")
    figures = {}
    for num_running in RUNNING:
        row = [step_us(num_running, num_waiting, steps) for num_waiting in WAITING]
        figures[num_running] = row
        table.add_row(str(num_running), *(f"{us:,.0f}" for us in row), f"{row[0] / num_running:.2f}")
    Console(width=110).print(table)
    print(json.dumps({"bench": "engine_overhead", **facts, "waiting": WAITING, "step_us": figures}))


if __name__ == "__main__":
    typer.run(main)
