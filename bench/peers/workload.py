"""What every peer does, and the clock around it. Standard library alone: it runs in each peer's environment.

A peer is two functions. `prepare` turns the checkpoint into what it loads, and is not timed; `load` gives a
function that generates. Knows no peer.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Prompts and a number of new tokens -> the new tokens of each; greedy, end tokens ignored.
Generate = Callable[[list[list[int]], int], list[list[int]]]
Prepare = Callable[[Path, str, Path], None]  # (checkpoint, variant, an empty folder)
Load = Callable[[Path, str, Path, int], Generate]  # (checkpoint, variant, the folder prepared, threads)

FIGURES = "figures: "  # what the line of them begins with

WORKS = {  # streams, tokens of each prompt, new tokens of each
    "prefill of 512": (1, 512, 1),
    "1 stream": (1, 1, 64),
    "8 streams": (8, 64, 64),
    "32 streams": (32, 64, 64),
}


def run(prepare: Prepare, load: Load) -> None:
    """The peer's process: `prepare CHECKPOINT VARIANT FOLDER`, or `measure … THREADS BEGAN_S`.

    BEGAN_S is the machine's monotonic clock at the process's start, by whoever started it.
    """
    action, checkpoint, variant, folder, *others = sys.argv[1:]
    if action == "prepare":
        prepare(Path(checkpoint), variant, Path(folder))
        return
    threads, began_s = others
    generate = load(Path(checkpoint), variant, Path(folder), int(threads))
    generate([[1]], 1)
    start_s = time.monotonic() - float(began_s)
    vocab_size = json.loads(Path(checkpoint, "config.json").read_text())["vocab_size"]
    told = {"start_s": start_s, "tokens_per_s": measured(generate, vocab_size)}
    print(f"{FIGURES}{json.dumps(told)}", flush=True)


def measured(generate: Generate, vocab_size: int) -> dict[str, float]:
    """Tokens per second of each work, over its whole time: new ones, or a prefill's prompt."""
    draw = random.Random(0)
    speeds = {}
    for name, (num_streams, num_prompt_tokens, num_new_tokens) in WORKS.items():

        def prompts(count: int = num_streams, length: int = num_prompt_tokens) -> list[list[int]]:
            return [draw.choices(range(1, vocab_size), k=length) for _ in range(count)]

        generate(prompts(), min(2, num_new_tokens))  # what is the first of its shape may set something up
        given = prompts()
        began_s = time.perf_counter()
        answers = generate(given, num_new_tokens)
        took_s = time.perf_counter() - began_s
        if [len(answer) for answer in answers] != [num_new_tokens] * num_streams:
            raise RuntimeError(f"{name}: has {[len(answer) for answer in answers]} tokens")
        speeds[name] = num_streams * (num_prompt_tokens if num_new_tokens == 1 else num_new_tokens) / took_s
    return speeds
