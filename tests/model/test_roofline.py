"""What a step must read and multiply, counted by hand; what the machine gives is seen to be something."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.config import DecoderConfig, Experts
from model.decoder import Decoder
from model.interface import Roof
from model.loader import load, open_folder
from model.machine import cache_bytes
from model.roofline import demand, most_read_bytes, multiplications_per_s, read_bytes_per_s
from tests.model.decoders import CPU, DOCUMENT, LLAMA_LIKE
from tests.model.folders import write_folder

VOCAB, HIDDEN, INNER, LAYERS = 97, 32, 64, 3


def matrices(config: DecoderConfig, num_inner: int) -> int:
    """Numbers of a layer's matrices: queries and output, keys and values, the feed-forward network."""
    kv = HIDDEN // config.num_heads * config.num_kv_heads
    return HIDDEN * (2 * HIDDEN + 2 * kv + num_inner)


def test_an_embedding_that_is_not_tied_is_not_read() -> None:
    decoder = Decoder(LLAMA_LIKE)
    num_bytes, layers, output = demand(decoder, torch.bfloat16)
    assert layers == LAYERS * matrices(LLAMA_LIKE, 3 * INNER)
    assert output == VOCAB * HIDDEN
    norms = (2 * LAYERS + 1) * HIDDEN
    assert num_bytes == 2 * (layers + output + norms)


def test_a_tied_embedding_is_the_outputs_matrix() -> None:
    decoder = Decoder(DOCUMENT)
    num_bytes, layers, output = demand(decoder, torch.float32)
    assert layers == LAYERS * matrices(DOCUMENT, 2 * INNER)
    assert output == VOCAB * HIDDEN
    assert num_bytes == 4 * sum(parameter.numel() for parameter in decoder.parameters())


def test_of_a_mixture_the_experts_of_one_token_count() -> None:
    experts = Experts(num_experts=8, num_chosen=2, feed_forward_size=INNER, is_renormalized=True)
    decoder = Decoder(dataclasses.replace(LLAMA_LIKE, experts=experts))
    num_bytes, layers, _ = demand(decoder, torch.float32)
    assert layers == LAYERS * (matrices(LLAMA_LIKE, 2 * 3 * INNER) + 8 * HIDDEN)
    unread = LAYERS * 6 * 3 * INNER * HIDDEN + VOCAB * HIDDEN
    assert num_bytes == 4 * (sum(parameter.numel() for parameter in decoder.parameters()) - unread)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_packed_weights_are_read_as_they_are_held(
    tmp_path_factory: pytest.TempPathFactory, quantize: str
) -> None:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder)
    dense, packed = (load(open_folder(folder, quantize=each)).decoder for each in ("none", quantize))
    dense_bytes, *dense_work = demand(dense, torch.float32)
    packed_bytes, *packed_work = demand(packed, torch.float32)
    assert packed_work == dense_work
    saved = {"int8": 4 - 1, "int4": 4 - 0.5}[quantize] * dense_work[0] + (4 - 1) * dense_work[1]
    assert dense_bytes - saved < packed_bytes < dense_bytes  # it has scales, too


def test_the_slower_of_the_two_is_the_limit() -> None:
    roof = Roof(
        num_threads=1,
        bytes_per_s=1000.0,
        multiplications_per_s=100.0,
        weight_bytes=500.0,
        kv_bytes_per_token=10,
        layer_multiplications=4.0,
        output_multiplications=6,
    )
    assert roof.least_s(1, 1) == 0.5
    assert roof.least_s(1, 1, num_cached=50) == 1.0
    assert roof.least_s(100, 2) == 4.12


def test_the_machine_reads_and_multiplies_something() -> None:
    assert 1e7 < read_bytes_per_s(2**20, CPU) < 1e13
    assert 1e7 < multiplications_per_s([torch.float32], CPU) < 1e14


def write_cache(root: Path, cpu: int, index: int, level: int, cores: str, size: str) -> None:
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    folder.mkdir(parents=True)
    for name, text in (("level", str(level)), ("shared_cpu_list", cores), ("size", size)):
        (folder / name).write_text(text + "\n")


def test_the_caches_of_the_last_level_count_once_each(tmp_path: Path) -> None:
    """Four cores in two groups, of which each shares a cache; one does not tell its size."""
    for cpu in range(4):
        write_cache(tmp_path, cpu, 0, 1, f"{cpu}", "48K")
        write_cache(tmp_path, cpu, 3, 3, "0-1" if cpu < 2 else "2-3", "32768K")
    (tmp_path / "sys/devices/system/cpu/cpu3/cache/index3/size").unlink()
    assert cache_bytes(CPU, tmp_path) == 2 * 2**25
    assert cache_bytes(CPU, tmp_path / "elsewhere") == 0


@pytest.mark.parametrize(
    ("cache", "free", "most"),
    [(480 * 2**20, 2**40, 1920 * 2**20), (0, 2**40, 2**28), (480 * 2**20, 2**30, 2**29)],
)
def test_what_is_read_fits_the_memory_but_no_cache(
    monkeypatch: pytest.MonkeyPatch, cache: int, free: int, most: int
) -> None:
    monkeypatch.setattr("model.roofline.cache_bytes", lambda device: cache)
    monkeypatch.setattr("model.roofline.free_bytes", lambda device: free)
    assert most_read_bytes(CPU) == most


def test_no_more_is_read_than_was_asked_for_nor_than_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ones = torch.ones

    def counted(size: int, *, device: torch.device) -> torch.Tensor:
        asked.append(size)
        return ones(size, device=device)

    monkeypatch.setattr("torch.ones", counted)
    monkeypatch.setattr("model.roofline.most_read_bytes", lambda device: 4000)
    monkeypatch.setattr("model.roofline.MEASURE_S", 0.0)
    read_bytes_per_s(400, CPU)
    read_bytes_per_s(2**40, CPU)
    assert asked == [100, 1000]
