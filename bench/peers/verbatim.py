"""Our own engine, as a peer: in process, as the others are. What the server adds `verbatim bench` tells."""

from __future__ import annotations

import itertools
from pathlib import Path

from bench.peers.workload import Generate, run
from server.engine.frames import WorkerConfig
from server.engine.load import Load, run_load
from server.engine.worker import build_engine, generate_one_token, load_model

DTYPE = "bfloat16"


def prepare(checkpoint: Path, variant: str, folder: Path) -> None:
    """Nothing: the checkpoint is quantized as it is loaded."""


def load(checkpoint: Path, variant: str, folder: Path, threads: int) -> Generate:
    """variant: bf16, int8 or int4."""
    config = WorkerConfig(
        model_dir=str(checkpoint),
        model_id=checkpoint.name,
        dtype=DTYPE,
        quantize="none" if variant == "bf16" else variant,
        num_threads=threads,
    )
    model = load_model(config)
    generate_one_token(model)
    engine = build_engine(model, config)
    ids = itertools.count(step=1000)

    def generate(prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        return run_load(engine, Load(prompts, num_new_tokens), next(ids)).token_ids

    return generate


if __name__ == "__main__":
    run(prepare, load)
