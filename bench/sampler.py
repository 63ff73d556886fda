"""What choosing tokens takes: `Sampler.sample` for one row and for many, by vocabulary and parameters."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import replace
from statistics import median

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.machine import RoundsOption, ThreadsOption, described, machine
from model.interface import SampleRequest
from model.sampling.sampler import Sampler
from model.sampling.sampling_params import SamplingParams

NUM_ROWS = (1, 32)
VOCAB_SIZES = (4_096, 49_152, 151_936)
NUM_TOKENS = 200  # known ones, at which penalties look
LEAST_S = 0.1  # how long a case is repeated in a round

GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=0.8)
TOP_K, TOP_P = replace(WARM, top_k=40), replace(WARM, top_p=0.95)
CASES = {
    "greedy": GREEDY,
    "temperature 0.8": WARM,
    "top_k 40": TOP_K,
    "top_p 0.95": TOP_P,
    "top_k 40, top_p 0.95": replace(TOP_K, top_p=0.95),
    "greedy, penalty": replace(GREEDY, repetition_penalty=1.1),
    "temperature, penalty": replace(WARM, repetition_penalty=1.1),
    "top_k, top_p, penalty": replace(TOP_K, top_p=0.95, repetition_penalty=1.1),
    "greedy, top 5": replace(GREEDY, top_n_tokens=5),
    "top_k, top_p, top 5": replace(TOP_K, top_p=0.95, top_n_tokens=5),
    "typical_p 0.95": replace(WARM, typical_p=0.95),
}


def logits_of(num_rows: int, vocab_size: int) -> torch.Tensor:
    """Normal ones, at which some hundred tokens make up 0.95 at temperature 0.8."""
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 4


def requests_for(params: SamplingParams, num_rows: int, vocab_size: int) -> list[SampleRequest]:
    """A request for each row, each with a seed of its own."""
    token_ids = torch.randint(vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        SampleRequest(
            params=replace(params, seed=row), token_ids=token_ids, num_prompt_tokens=NUM_TOKENS // 2
        )
        for row in range(num_rows)
    ]


def main(rounds: RoundsOption = 3, threads: ThreadsOption = 2) -> None:
    """Measure every case; print a table of milliseconds and a line of JSON."""
    torch.set_num_threads(threads)
    facts = machine() | {"threads": threads, "rounds": rounds}
    print(described(facts))
    sampler, samples = Sampler(), defaultdict(list)
    columns = [(vocab_size, num_rows) for vocab_size in VOCAB_SIZES for num_rows in NUM_ROWS]
    for _ in range(rounds):
        for vocab_size, num_rows in columns:
            logits = logits_of(num_rows, vocab_size)
            for name, params in CASES.items():
                requests = requests_for(params, num_rows, vocab_size)
                sampler.sample(logits, requests)
                deadline_s = time.perf_counter() + LEAST_S
                while (began_s := time.perf_counter()) < deadline_s:
                    sampler.sample(logits, requests)
                    samples[name, vocab_size, num_rows].append(1000 * (time.perf_counter() - began_s))

    table = Table("median ms of", *(f"{num_rows} x {vocab_size:,}" for vocab_size, num_rows in columns))
    figures = []
    for name in CASES:
        ms = [median(samples[name, *column]) for column in columns]
        table.add_row(name, *(f"{value:,.3f}" for value in ms))
        figures += [
            {"of": name, "vocab_size": vocab_size, "num_rows": num_rows, "ms": value}
            for (vocab_size, num_rows), value in zip(columns, ms, strict=True)
        ]
    Console(width=120).print(table)
    print(json.dumps({"bench": "sampler", **facts, "figures": figures}))


if __name__ == "__main__":
    typer.run(main)
