"""What the server costs: streams through the socket beside the same work in process, in one run.

The client is a process of its own, so that it shares no event loop with the front; but it needs CPU, too.
On two cores it competes with the front for the core that the worker leaves them, and with whatever else
runs there: the ratio that is printed bounds the server's own cost from above.

A round is one life of a server. Within it the two ways take turns, and their tokens must be the same.
Figures are medians over all rounds.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.client import Run, health_per_s, stream
from bench.machine import EMBEDDED_MODEL, ModelArgument, RoundsOption, ThreadsOption, described, machine
from model.interface import ModelInfo
from model.sampling.sampling_params import SamplingParams
from server.engine.frames import WorkerConfig
from server.engine.request import GenerationRequest
from server.engine.worker import build_engine, generate_one_token, load_model
from tests.whole import Server, running

HEALTH_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streams that start together, and how often a round has them."""

    num_streams: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_runs: int

    @property
    def num_tokens(self) -> int:
        """What its speed counts: new tokens, or those of the prompt if there is only one new one."""
        each = self.num_new_tokens if self.num_new_tokens > 1 else self.num_prompt_tokens
        return self.num_streams * each


LOADS = {
    "1 stream": Load(num_streams=1, num_prompt_tokens=64, num_new_tokens=64, num_runs=4),
    "8 streams": Load(num_streams=8, num_prompt_tokens=64, num_new_tokens=64, num_runs=2),
    "32 streams": Load(num_streams=32, num_prompt_tokens=64, num_new_tokens=64, num_runs=1),
    "prefill": Load(num_streams=1, num_prompt_tokens=448, num_new_tokens=1, num_runs=4),
}


class InProcess:
    """The worker's model and engine, without worker, front or sockets."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        config = WorkerConfig(model_dir=str(folder), model_id=folder.name, num_threads=num_threads)
        model = load_model(config, lambda done, total: None)
        generate_one_token(model)
        self.info: ModelInfo = model.info
        self._engine = build_engine(model, config)
        self._ids = itertools.count()

    def stream(self, prompts: list[list[int]], num_new_tokens: int) -> Run:
        """What `client.stream` does, with everything queued before the first step."""
        began_s = time.perf_counter()
        first_token_s: dict[int, float] = {}
        token_ids: dict[int, list[int]] = {}
        for sequence_id, prompt in zip(self._ids, prompts, strict=False):
            token_ids[sequence_id] = []
            request = GenerationRequest(
                prompt_ids=tuple(prompt),
                sampling=SamplingParams(temperature=0.0),
                max_new_tokens=num_new_tokens,
            )
            self._engine.add(sequence_id, request)
        while self._engine.has_work:
            for sequence_id, output in self._engine.step():
                first_token_s.setdefault(sequence_id, time.perf_counter() - began_s)
                if output.token_id is not None:
                    token_ids[sequence_id].append(output.token_id)
        took_s = time.perf_counter() - began_s
        return Run(took_s, list(first_token_s.values()), list(token_ids.values()))


class Bench:
    """Samples of every figure, as they come."""

    def __init__(self, inside: InProcess, client: ProcessPoolExecutor) -> None:
        self._inside = inside
        self._client = client
        self._runs: dict[str, list[tuple[Run, Run]]] = defaultdict(list)  # through the socket, in process
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._random = random.Random(0)

    def round(self, server: Server) -> None:
        """Everything once."""
        for load in LOADS.values():
            self._both_ways(server, load)  # the first of its shape pays for memory that the others reuse
        for name, load in LOADS.items():
            self._runs[name] += [self._both_ways(server, load) for _ in range(load.num_runs)]
        worker = server.worker()
        assert worker is not None
        front_bytes, worker_bytes = (process.memory_info().rss for process in (server.front(), worker))
        info = self._inside.info
        weights_and_cache = info.memory.weight_bytes + info.memory.kv_cache_bytes
        for name, value in {
            "start_s": server.start_s,
            "health_per_s": self._client.submit(health_per_s, server.url, HEALTH_S).result(),
            "front_mb": front_bytes / 1e6,
            "worker_mb": worker_bytes / 1e6,
            "worker_over_weights_and_cache": worker_bytes / weights_and_cache,
        }.items():
            self._samples[name].append(value)

    def loads(self) -> dict[str, dict[str, float]]:
        """Of each load the medians, and the 99th percentile of the time to the first token."""
        return {name: _compared(runs, LOADS[name].num_tokens) for name, runs in self._runs.items()}

    def server(self) -> dict[str, float]:
        """The medians of the other figures."""
        return {name: median(values) for name, values in self._samples.items()}

    def _both_ways(self, server: Server, load: Load) -> tuple[Run, Run]:
        ids = range(self._inside.info.vocab_size)
        # Random and never the same twice: nothing that remembers prompts helps.
        prompts = [self._random.choices(ids, k=load.num_prompt_tokens) for _ in range(load.num_streams)]
        outside = self._client.submit(stream, server.url, prompts, load.num_new_tokens).result()
        inside = self._inside.stream(prompts, load.num_new_tokens)
        if outside.token_ids != inside.token_ids:
            raise RuntimeError("the tokens through the socket are not those in process")
        return outside, inside


def _compared(runs: list[tuple[Run, Run]], num_tokens: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for way, its_runs in zip(("socket", "process"), zip(*runs, strict=True), strict=True):
        first_ms = [1000 * first_s for run in its_runs for first_s in run.first_token_s]
        figures[f"{way}_first_token_ms"] = median(first_ms)
        figures[f"{way}_first_token_p99_ms"] = float(np.percentile(first_ms, 99))
        figures[f"{way}_tokens_per_s"] = num_tokens / median(run.took_s for run in its_runs)
    return figures | {"ratio": median(outside.took_s / inside.took_s for outside, inside in runs)}


def show(loads: dict[str, dict[str, float]], server: dict[str, float]) -> None:
    """For a reader."""
    table = Table(
        "", "first token, ms", "99 %", "tokens/s", "in process: ms", "99 %", "tokens/s", "time, ratio"
    )
    for name, row in loads.items():
        *figures, ratio = row.values()
        table.add_row(name, *(f"{figure:,.1f}" for figure in figures), f"{ratio:.2f}")
    Console(width=110).print(table)
    for name, value in server.items():
        print(f"{name:32}{value:10,.2f}")


def main(model: ModelArgument = EMBEDDED_MODEL, rounds: RoundsOption = 5, threads: ThreadsOption = 0) -> None:
    """Measure what the server costs; print a table and a line of JSON."""
    folder = model.resolve()
    context = machine()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as client:
        inside = InProcess(folder, threads)
        facts = context | {
            "model": folder.name,
            "dtype": inside.info.dtype,
            "threads": threads,
            "rounds": rounds,
        }
        print(described(facts))
        bench = Bench(inside, client)
        for _ in range(rounds):
            with running(str(folder), "--num-threads", str(threads)) as server:
                bench.round(server)
    show(bench.loads(), bench.server())
    print(json.dumps({"bench": "streams", **facts, "loads": bench.loads(), "server": bench.server()}))


if __name__ == "__main__":
    typer.run(main)
