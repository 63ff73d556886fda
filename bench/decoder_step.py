"""Where one step of the model goes: its kernels, the batch's layout, sampling, and the rest.

Kernels are the native ones, or else linear layers and attention in plain torch; the rest is Python between
them, and in plain torch norms, activations and sums. A step is timed as it is; its parts are timed in steps
of their own, since each clock around a part costs a microsecond.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, ParamSpec, TypeVar
from unittest import mock

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import EMBEDDED_MODEL, ModelArgument, RoundsOption, ThreadsOption, described, machine
from model.attention import PagedAttention
from model.batch import ForwardBatch
from model.interface import SampleRequest, StepItem
from model.kernels.attention import NativeAttention
from model.kv_cache import BLOCK_SIZE
from model.linear import Linear
from model.pairs import PairLayout
from model.runner import ModelRunner, RunnerOptions
from model.sampling.sampler import Sampler
from model.sampling.sampling_params import SamplingParams

P = ParamSpec("P")
T = TypeVar("T")

WIDTHS = {"float32": ("float32", "none"), "bfloat16": ("bfloat16", "none"), "int8": ("auto", "int8")}
DECODE_CONTEXT = 200  # tokens in the cache of each sequence that decodes
DECODE_WIDTHS = (1, 8, 32)
PREFILL_TOKENS = 512
SAMPLE_S = 0.2  # how long a step is repeated in a round, once as it is and once in parts

COLUMNS = ("step", "kernels", "layout", "sampling", "rest")


def parts_of(runner: ModelRunner) -> list[tuple[str, object, str]]:
    """What is timed: (part, whose, which method); none of them calls another."""
    kernels = runner.decoder.kernels
    computing: list[tuple[object, str]]
    if kernels is None:
        computing = [(Linear, "forward"), (PagedAttention, "__call__")]
    else:
        computing = [(kernels, "run"), (kernels, "_call")]
    return [
        *(("kernels", owner, name) for owner, name in computing),
        ("layout", ForwardBatch, "build"),
        ("layout", PairLayout, "build"),
        ("layout", PagedAttention, "__init__"),
        ("layout", NativeAttention, "__init__"),
        ("sampling", Sampler, "sample"),
    ]


def prompt_item(place: int, num_tokens: int) -> StepItem:
    """A whole prompt in one step; `place` says which stretch of the cache is its own."""
    return _item(place, [1] * num_tokens, 0)


def decode_item(place: int) -> StepItem:
    """One more token after `DECODE_CONTEXT`."""
    return _item(place, [1], DECODE_CONTEXT)


def _item(place: int, token_ids: list[int], start: int) -> StepItem:
    num_blocks = -(-max(DECODE_CONTEXT + 1, start + len(token_ids)) // BLOCK_SIZE)
    request = SampleRequest(
        params=SamplingParams(temperature=0.0),
        token_ids=[1] * (start + len(token_ids)),
        num_prompt_tokens=start + len(token_ids),
    )
    return StepItem(
        token_ids=token_ids,
        start=start,
        block_table=range(place * num_blocks, (place + 1) * num_blocks),
        sample=request,
    )


def load_runner(folder: Path, width: str, num_threads: int) -> ModelRunner:
    """The model, with `DECODE_CONTEXT` tokens of each of the widest step's sequences in its cache."""
    num_tokens = max(DECODE_WIDTHS) * (DECODE_CONTEXT + BLOCK_SIZE) + PREFILL_TOKENS
    dtype, quantize = WIDTHS[width]
    options = RunnerOptions(
        model_id=folder.name,
        dtype=dtype,
        quantize=quantize,
        num_threads=num_threads,
        kv_cache_tokens=num_tokens,
    )
    runner = ModelRunner.load(folder, options, lambda done, total: None)
    for place in range(max(DECODE_WIDTHS)):
        runner.execute([prompt_item(place, DECODE_CONTEXT)])
    return runner


def repeated(step: Callable[[], object]) -> Iterator[float]:
    """The milliseconds of each of many steps, for `SAMPLE_S`; one more goes before, and does not count."""
    step()
    deadline_s = time.perf_counter() + SAMPLE_S
    while (began_s := time.perf_counter()) < deadline_s:
        step()
        yield 1000 * (time.perf_counter() - began_s)


class Parts:
    """The milliseconds that the parts of the current step have taken."""

    def __init__(self, runner: ModelRunner) -> None:
        self._parts = parts_of(runner)
        self.spent_ms: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Puts a clock around every part."""
        with contextlib.ExitStack() as stack:
            for part, owner, name in self._parts:
                watched = self._watch(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, watched))
            yield

    def _watch(self, part: str, function: Callable[P, T]) -> Callable[P, T]:
        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            began_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent_ms[part] += 1000 * (time.perf_counter() - began_s)

        return watched


def sample_round(runner: ModelRunner, items: list[StepItem], samples: dict[str, list[float]]) -> None:
    """Add a round's samples: the step's milliseconds, and those of its parts."""
    samples["step"].extend(repeated(lambda: runner.execute(items)))
    parts = Parts(runner)

    def step() -> None:
        parts.spent_ms.clear()
        runner.execute(items)

    with parts.watched():
        for step_ms in repeated(step):
            for part, ms in parts.spent_ms.items():
                samples[part].append(ms)
            samples["rest"].append(step_ms - sum(parts.spent_ms.values()))


def main(
    model: ModelArgument = EMBEDDED_MODEL,
    rounds: RoundsOption = 5,
    threads: ThreadsOption = 1,
    only: Annotated[
        list[str] | None, typer.Option(help=f"of {', '.join(WIDTHS)}; may be given again")
    ] = None,
) -> None:
    """Measure one step and its parts; print a table and a line of JSON."""
    folder = model.resolve()
    facts = machine() | {"model": folder.name, "threads": threads, "rounds": rounds}
    print(described(facts))
    steps = {
        f"decode {n} at {DECODE_CONTEXT}": [decode_item(place) for place in range(n)] for n in DECODE_WIDTHS
    }
    steps[f"prefill {PREFILL_TOKENS}"] = [prompt_item(0, PREFILL_TOKENS)]
    runners = {width: load_runner(folder, width, threads) for width in only or WIDTHS}
    samples: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds):
        for name, items in steps.items():
            for width, runner in runners.items():
                sample_round(runner, items, samples[name, width])

    table = Table("median ms of", "", *COLUMNS, "step / kernels", "tokens/s")
    figures = []
    for (name, width), sample in samples.items():
        ms = {column: median(sample[column]) for column in COLUMNS}
        over_kernels = ms["step"] / ms["kernels"]
        tokens_per_s = 1000 / ms["step"] * sum(len(item.token_ids) for item in steps[name])
        cells = [f"{value:,.2f}" for value in (*ms.values(), over_kernels)]
        table.add_row(name, width, *cells, f"{tokens_per_s:,.0f}")
        figures.append(
            {"of": name, "width": width, "ms": ms, "over_kernels": over_kernels, "tokens_per_s": tokens_per_s}
        )
    Console(width=110).print(table)
    print(json.dumps({"bench": "decoder_step", **facts, "steps": figures}))


if __name__ == "__main__":
    typer.run(main)
