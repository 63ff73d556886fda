"""How fast a checkpoint of gigabytes becomes a model, beside what the disk, the memory and the hash can do.

Each load is a process of its own, whose memory is watched: at its peak, and after. `cold` drops the file from
the system's cache before; a virtual disk may have a cache of its own behind that. `as served`: the system is
asked to read ahead when the process starts, as a server's front does, so while Python and torch are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from bench.machine import RoundsOption, described, machine
from model.allocator import return_freed_memory
from model.checkpoint import INDEX, READ_BYTES, open_checkpoint
from model.decoder import build_empty
from model.families.verbatim import decoder_config
from model.hashing import digests_of_pieces
from model.kernels.library import Kernels, open_library
from model.loader import load, open_folder
from model.machine import num_cores, resident_bytes
from server.engine.read_ahead import read_ahead
from server.engine.worker_process import SPINNING

CONFIG: dict[str, Any] = {
    "model_type": "verbatim",
    "dtype": "bfloat16",
    "eos_token_id": 0,
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "num_layers": 20,
    "num_heads": 32,
    "num_kv_heads": 4,
    "feed_forward_size": 5632,
    "max_positions": 2048,
    "positions": "rotary",
    "norm": "rms_norm",
    "norm_placement": "pre",
    "activation": "silu",
    "gated": True,
    "attention_bias": False,
    "feed_forward_bias": False,
    "tie_word_embeddings": False,
}
KINDS = (  # name, dtype, quantize
    ("cold", "auto", "none"),
    ("cold, as served", "auto", "none"),
    ("warm", "auto", "none"),
    ("warm, to float32", "float32", "none"),
    ("warm, to int8", "auto", "int8"),
    ("warm, to int4", "auto", "int4"),
)
SHARD_BYTES = 500 * 10**6


def write_checkpoint(folder: Path) -> None:
    """A model of 1.1 billion random parameters in bfloat16, 2 GB, in shards of half a gigabyte."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    decoder = build_empty(decoder_config(CONFIG))
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, parameter in decoder.named_parameters():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = torch.randn(parameter.shape).mul_(0.02).to(torch.bfloat16)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def measure(folder: Path, dtype: str, quantize: str) -> dict[str, float]:
    """Load once, in this process."""
    return_freed_memory()
    torch.set_num_threads(num_cores())
    kernels = open_library("auto")
    base_bytes = resident_bytes()
    began_s = time.perf_counter()
    opened = open_folder(folder, dtype, quantize)
    opened_s = time.perf_counter()
    loaded = load(opened, kernels=kernels)
    took_s, loaded_at_s = time.perf_counter() - opened_s, time.monotonic()
    weight_bytes = sum(parameter.nbytes for parameter in loaded.decoder.parameters())
    return {
        "open_s": opened_s - began_s,
        "load_s": took_s,
        "gb_per_s": opened.checkpoint.num_bytes / took_s / 1e9,
        "loaded_at_s": loaded_at_s,  # by a clock that all processes share
        "peak_over_weights": (peak_bytes() - base_bytes) / weight_bytes,
        "after_over_weights": (resident_bytes() - base_bytes) / weight_bytes,
    }


def peak_bytes(process: int | str = "self") -> int:
    """The most that a process held; getrusage would tell what its parent held before it."""
    [line] = [x for x in Path(f"/proc/{process}/status").read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def forget(folder: Path) -> None:
    """Drop the checkpoint from the system's cache."""
    for file in open_checkpoint(folder).files:
        with file.path.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_speed(folder: Path) -> float:
    """Gigabytes a second at which one thread reads the files into one small buffer: disk or cache alone."""
    buffer = bytearray(2**20)
    num_bytes, began_s = 0, time.perf_counter()
    for file in open_checkpoint(folder).files:
        with file.path.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                num_bytes += count
    return num_bytes / (time.perf_counter() - began_s) / 1e9


def hash_speed(kernels: Kernels | None) -> float:
    """Gigabytes a second that SHA-256 takes in on one core: hashlib's, or the kernels' if they are faster."""
    data = torch.zeros(READ_BYTES, dtype=torch.uint8)
    began_s = time.perf_counter()
    for _ in range(100):
        digests_of_pieces(data, kernels)
    return 100 * len(data) / (time.perf_counter() - began_s) / 1e9


def in_a_process(folder: Path, *kind: str) -> dict[str, float]:
    """`measure`, in a fresh process whose threads wait as the worker's do."""
    command = [*SPINNING, sys.executable, "-m", "bench.load", "--folder", str(folder), "--once", *kind]
    began_s = time.monotonic()
    told: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return told | {"from_start_s": told.pop("loaded_at_s") - began_s}


def bench(folder: Path, rounds: int) -> None:
    """Print a table and a line of JSON."""
    facts = machine() | {"rounds": rounds}
    print(described(facts))
    if not (folder / INDEX).exists():
        write_checkpoint(folder)
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds):
        for name, *kind in KINDS:
            if name == "cold":
                forget(folder)
                samples["read alone, cold"]["gb_per_s"].append(read_speed(folder))
            if "cold" in name:
                forget(folder)
            if "served" in name:
                read_ahead(folder)
            for figure, value in in_a_process(folder, *kind).items():
                samples[name][figure].append(value)
        samples["read alone, warm"]["gb_per_s"].append(read_speed(folder))
        samples["SHA-256 alone, hashlib's"]["gb_per_s"].append(hash_speed(None))
        samples["SHA-256 alone, kernels'"]["gb_per_s"].append(hash_speed(open_library("auto")))
    figures = {name: {f: median(values) for f, values in held.items()} for name, held in samples.items()}
    table = Table(
        "median of", "GB/s", "s", "s to open", "s from its start", "peak / weights", "after / weights"
    )
    for name, held in figures.items():
        columns = ("gb_per_s", "load_s", "open_s", "from_start_s", "peak_over_weights", "after_over_weights")
        table.add_row(name, *(f"{held[column]:.2f}" if column in held else "" for column in columns))
    Console(width=110).print(table)
    print(json.dumps({"bench": "load", **facts, "figures": figures}))


def main(
    rounds: RoundsOption = 3,
    folder: Annotated[
        Path | None, typer.Option(help="where the checkpoint is, or is to be written; absent: for this run")
    ] = None,
    once: Annotated[tuple[str, str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure loading; 2 GB are written first, unless they are there."""
    if folder is not None:
        if once is not None:
            print(json.dumps(measure(folder, *once)))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            bench(folder, rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        bench(Path(temporary), rounds)


if __name__ == "__main__":
    typer.run(main)
