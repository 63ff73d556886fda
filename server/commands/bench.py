"""`verbatim bench`: how fast a model is here, beside what the machine allows, and what the server adds to it.

Decides what is done and how often; the model's times are those of server/engine/measurer.py, in a process
without front or sockets. The two ways take turns in one run, and their tokens must be the same. The client
needs a processor, too: on few cores it competes with the server, so the ratio bounds its cost from above.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Annotated

import msgspec
import typer

from model.interface import Roof
from server import console
from server.commands.load_client import health_per_s, stream
from server.commands.machine import machine
from server.commands.measured import Inside, Served, inside, serving
from server.commands.plan import ModelArgument
from server.commands.shared import ENGINE_SETTINGS, fail, model_folder, with_settings, worker_config
from server.engine.load import Load, Run
from server.settings import Settings

PREFILL_TOKENS = 512
PROMPT_TOKENS = 64
WIDTHS = (1, 8, 32)
NUM_TOKENS = 64  # that each stream generates
QUICK_TOKENS = 8
HEALTH_S = 1.0


class Work(msgspec.Struct, frozen=True):
    """Streams that start together."""

    num_streams: int
    num_prompt_tokens: int
    num_new_tokens: int

    @property
    def name(self) -> str:
        """For a table."""
        if self.num_new_tokens == 1:
            return f"prefill of {self.num_prompt_tokens}"
        return "1 stream" if self.num_streams == 1 else f"{self.num_streams} streams"

    def load(self, draw: random.Random, vocab_size: int, num_new_tokens: int | None = None) -> Load:
        """Prompts of random ids, never the same twice: nothing that remembers prompts helps."""
        ids = range(vocab_size)
        prompts = [draw.choices(ids, k=self.num_prompt_tokens) for _ in range(self.num_streams)]
        return Load(prompts, num_new_tokens or self.num_new_tokens)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of one kind of work. Tokens per second count new tokens, or a prefill's prompt."""

    work: str
    step_ms: float  # of a prefill, or of a step in which every stream gets a token
    step_tokens_per_s: float
    limit_tokens_per_s: float
    of_limit: float
    process_tokens_per_s: float  # from the start of all to the last token
    socket_tokens_per_s: float
    ratio: float  # the time through the socket over that in process
    process_first_token_ms: float
    socket_first_token_ms: float


@with_settings(*ENGINE_SETTINGS)
def bench(
    settings: Settings,
    model_dir: ModelArgument = None,
    rounds: Annotated[int, typer.Option(min=1, help="lives of a server; figures are medians")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="one round of short streams: to see it work")
    ] = False,
) -> None:
    """Measure a model here: its speed beside the machine's limit, the server's cost, its start and memory."""
    config = worker_config(settings, model_folder(model_dir, settings))
    facts = machine()
    try:
        with inside(config) as measurer:
            measured = Bench(measurer, settings, QUICK_TOKENS if quick else NUM_TOKENS)
            for _ in range(1 if quick else rounds):
                with serving(config.model_dir, settings) as served:
                    measured.round(served)
    except RuntimeError as error:
        fail(str(error))
    info, roof, work, server = measurer.info, measured.roof(), measured.work(), measured.server()
    model = {
        "model_id": info.model_id,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "kernels": info.kernels,
        "threads": roof.num_threads,
        "rounds": 1 if quick else rounds,
    }
    console.show_bench(
        ", ".join(f"{name} {fact}" for name, fact in {**facts, **model}.items()),
        [msgspec.structs.asdict(each) for each in work],
        server,
        f"limit: {roof.weight_bytes / 1e6:,.0f} MB of weights a step, read at {roof.bytes_per_s / 1e9:.1f} "
        f"GB/s; products at {2 * roof.multiplications_per_s / 1e9:,.0f} GFLOP/s",
    )
    told = {"bench": "bench", **facts, **model, "roof": roof, "work": work, "server": server}
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")


class Bench:
    """Samples of every figure, as they come."""

    def __init__(self, measurer: Inside, settings: Settings, num_new_tokens: int) -> None:
        self._inside = measurer
        self._api_key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
        self._draw = random.Random(0)
        longest = measurer.info.max_total_tokens
        if longest < PROMPT_TOKENS + num_new_tokens:
            raise RuntimeError(
                f"the context is {longest} tokens, {PROMPT_TOKENS + num_new_tokens} are needed"
            )
        self._works = [
            Work(1, min(PREFILL_TOKENS, longest - 1), 1),
            *(Work(width, PROMPT_TOKENS, num_new_tokens) for width in WIDTHS),
        ]
        self._runs: dict[str, list[tuple[Run, Run]]] = defaultdict(list)  # in process, through the socket
        self._roofs: list[Roof] = []
        self._server: dict[str, list[float]] = defaultdict(list)

    def round(self, served: Served) -> None:
        """Everything once."""
        self._roofs.append(self._inside.roof())
        for work in self._works:  # what is the first of its shape pays for memory that the others reuse
            self._both_ways(served, work, min(2, work.num_new_tokens))
        for work in self._works:
            self._runs[work.name].append(self._both_ways(served, work, work.num_new_tokens))
        memory = self._inside.info.memory
        front_bytes, worker_bytes = served.resident_bytes()
        for name, value in {
            "start_s": served.start_s,
            "front_mb": front_bytes / 1e6,
            "worker_mb": worker_bytes / 1e6,
            "weights_mb": memory.weight_bytes / 1e6,
            "kv_cache_mb": memory.kv_cache_bytes / 1e6,
            "all_but_cache_over_weights": (front_bytes + worker_bytes - memory.kv_cache_bytes)
            / memory.weight_bytes,
            "health_per_s": health_per_s(served.address, HEALTH_S),
        }.items():
            self._server[name].append(value)

    def roof(self) -> Roof:
        """What the model asks for, and the most that the machine gave in any round."""
        fastest = {
            name: max(getattr(roof, name) for roof in self._roofs)
            for name in ("bytes_per_s", "multiplications_per_s")
        }
        return dataclasses.replace(self._roofs[0], **fastest)

    def work(self) -> list[Figures]:
        """The medians of each kind."""
        roof = self.roof()
        return [_figures(work, self._runs[work.name], roof) for work in self._works]

    def server(self) -> dict[str, float]:
        """The medians of the other figures."""
        return {name: median(values) for name, values in self._server.items()}

    def _both_ways(self, served: Served, work: Work, num_new_tokens: int) -> tuple[Run, Run]:
        load = work.load(self._draw, self._inside.info.vocab_size, num_new_tokens)
        outside = stream(served.address, load, self._api_key)
        within = self._inside.run(load)
        if outside.token_ids != within.token_ids:
            raise RuntimeError(f"{work.name}: the tokens through the socket are not those in process")
        return within, outside


def _figures(work: Work, runs: Iterable[tuple[Run, Run]], roof: Roof) -> Figures:
    within, outside = zip(*runs, strict=True)
    if work.num_new_tokens == 1:
        num_tokens, step_tokens = work.num_prompt_tokens, work.num_prompt_tokens
        step_s, least_s = median(run.took_s for run in within), roof.least_s(work.num_prompt_tokens, 1)
    else:
        num_tokens, step_tokens = work.num_streams * work.num_new_tokens, work.num_streams
        context = work.num_prompt_tokens + work.num_new_tokens // 2  # in the middle of the answer
        step_s = median(run.step_s or 0.0 for run in within)
        least_s = roof.least_s(step_tokens, step_tokens, step_tokens * context)
    return Figures(
        work=work.name,
        step_ms=1000 * step_s,
        step_tokens_per_s=step_tokens / step_s,
        limit_tokens_per_s=step_tokens / least_s,
        of_limit=least_s / step_s,
        process_tokens_per_s=num_tokens / median(run.took_s for run in within),
        socket_tokens_per_s=num_tokens / median(run.took_s for run in outside),
        ratio=median(out.took_s / run.took_s for run, out in zip(within, outside, strict=True)),
        process_first_token_ms=1000 * median(s for run in within for s in run.first_token_s),
        socket_first_token_ms=1000 * median(s for run in outside for s in run.first_token_s),
    )
