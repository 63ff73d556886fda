"""What guessing tokens costs where nothing matches, and what it brings where a text repeats itself.

One model, and an engine with guesses and one without, in turns. Both must say the same, or the command fails.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import EMBEDDED_MODEL, ModelArgument, RoundsOption, ThreadsOption, described, machine
from model.sampling.sampling_params import SamplingParams
from server.engine.frames import WorkerConfig
from server.engine.load import Load, run_load
from server.engine.worker import build_engine, load_model

PROMPT_TOKENS = 64
NEW_TOKENS = 64
NUM_STREAMS = (1, 8)
PERIOD = 16  # after so many tokens a repeating prompt begins anew


def load_of(kind: str, num_streams: int, vocab_size: int, draw: random.Random) -> Load:
    """Prompts that no round has seen. `matches` is greedy and repeats; `nothing` is drawn, nearly evenly."""
    period = PERIOD if kind == "matches" else PROMPT_TOKENS
    sampling = SamplingParams(temperature=0.0 if kind == "matches" else 100.0, seed=draw.randrange(2**32))
    prompts = [
        draw.choices(range(vocab_size), k=period) * (PROMPT_TOKENS // period) for _ in range(num_streams)
    ]
    return Load(prompts, NEW_TOKENS, sampling)


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
                load = load_of(kind, num_streams, loaded.info.vocab_size, draw)
                # Engines of their own each time: the other has written over what one has in its prefix cache.
                plain = build_engine(loaded, WorkerConfig(model_dir="", model_id=""))
                guessing = build_engine(loaded, config)
                turns = [plain, guessing] if draw.random() < 0.5 else [guessing, plain]
                runs = {id(engine): run_load(engine, load, first_id=0) for engine in turns}
                without, with_guesses = runs[id(plain)], runs[id(guessing)]
                if without.token_ids != with_guesses.token_ids:
                    raise RuntimeError("guessing changed an answer")
                took_s[kind, num_streams].append((without.took_s, with_guesses.took_s))
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
