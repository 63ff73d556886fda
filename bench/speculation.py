"""What guessing tokens costs where nothing matches, and what it brings where a text repeats itself.

One model, and an engine with guesses and one without, in turns. Both must say the same, or the command fails.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import EMBEDDED_MODEL, ModelArgument, RoundsOption, ThreadsOption, described, machine
from model.sampling.sampling_params import SamplingParams
from server.engine.engine import Engine
from server.engine.frames import WorkerConfig
from server.engine.request import GenerationRequest
from server.engine.worker import build_engine, load_model

PROMPT_TOKENS = 64
NEW_TOKENS = 64
NUM_STREAMS = (1, 8)
PERIOD = 16  # after so many tokens a repeating prompt begins anew


def requests_for(
    kind: str, num_streams: int, vocab_size: int, draw: random.Random
) -> list[GenerationRequest]:
    """Prompts that no round has seen. `matches` is greedy and repeats; `nothing` is drawn, nearly evenly."""
    period = PERIOD if kind == "matches" else PROMPT_TOKENS
    sampling = SamplingParams(temperature=0.0 if kind == "matches" else 100.0, seed=draw.randrange(2**32))
    requests = []
    for _ in range(num_streams):
        begins = draw.choices(range(vocab_size), k=period)
        prompt_ids = tuple(begins * (PROMPT_TOKENS // period))
        requests.append(
            GenerationRequest(prompt_ids=prompt_ids, sampling=sampling, max_new_tokens=NEW_TOKENS)
        )
    return requests


def generated(engine: Engine, requests: list[GenerationRequest]) -> tuple[list[list[int]], float]:
    """The tokens of each, and the seconds that all took."""
    token_ids: list[list[int]] = [[] for _ in requests]
    began_s = time.perf_counter()
    for sequence_id, request in enumerate(requests):
        engine.add(sequence_id, request)
    while engine.has_work:
        for sequence_id, output in engine.step():
            if output.token_id is None:
                raise RuntimeError(f"a stream failed: {output.error}")
            token_ids[sequence_id].append(output.token_id)
    return token_ids, time.perf_counter() - began_s


def main(
    model: ModelArgument = EMBEDDED_MODEL,
    rounds: RoundsOption = 5,
    threads: ThreadsOption = 2,
    tokens: Annotated[int, typer.Option(min=1, max=64, help="guesses in a step, at most")] = 8,
) -> None:
    """Measure both engines; print a table and a line of JSON."""
    folder = model.resolve()
    facts = machine() | {"model": folder.name, "threads": threads, "rounds": rounds, "guesses": tokens}
    print(described(facts))
    config = WorkerConfig(
        model_dir=str(folder), model_id=folder.name, num_threads=threads, speculative_tokens=tokens
    )
    loaded = load_model(config)
    draw = random.Random(0)
    took_s: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    accepted: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for kind in ("nothing", "matches"):
            for num_streams in NUM_STREAMS:
                requests = requests_for(kind, num_streams, loaded.info.vocab_size, draw)
                # Engines of their own each time: the other has written over what one has in its prefix cache.
                plain = build_engine(loaded, WorkerConfig(model_dir="", model_id=""))
                guessing = build_engine(loaded, config)
                turns = [plain, guessing] if draw.random() < 0.5 else [guessing, plain]
                ended = {id(engine): generated(engine, requests) for engine in turns}
                (said, plain_s), (said_too, guessing_s) = ended[id(plain)], ended[id(guessing)]
                if said != said_too:
                    raise RuntimeError("guessing changed an answer")
                took_s[kind, num_streams].append((plain_s, guessing_s))
                accepted[kind, num_streams].append(
                    guessing.scheduler.num_accepted_tokens / (num_streams * NEW_TOKENS)
                )

    table = Table("what repeats", "streams", "tokens/s", "with guesses", "ratio of times", "guessed, of all")
    figures = []
    for (kind, num_streams), times in took_s.items():
        plain_s, guessing_s = (median(each) for each in zip(*times, strict=True))
        num_tokens = num_streams * NEW_TOKENS
        ratio = median(guessing_s / plain_s for plain_s, guessing_s in times)
        figure = {
            "of": kind,
            "streams": num_streams,
            "tokens_per_s": num_tokens / plain_s,
            "guessing_tokens_per_s": num_tokens / guessing_s,
            "ratio": ratio,
            "guessed": median(accepted[kind, num_streams]),
        }
        figures.append(figure)
        speeds = (f"{num_tokens / plain_s:,.1f}", f"{num_tokens / guessing_s:,.1f}")
        table.add_row(kind, str(num_streams), *speeds, f"{ratio:.3f}", f"{figure['guessed']:.2f}")
    Console(width=110).print(table)
    print(json.dumps({"bench": "speculation", **facts, "loads": figures}))


if __name__ == "__main__":
    typer.run(main)
