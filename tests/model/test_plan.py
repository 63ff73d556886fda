"""The plan of memory: pure arithmetic, held to what a step's tensors really take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import DecoderConfig, Experts
from model.decoder import build_empty
from model.folder import LoadError
from model.interface import MemoryPlan, SampleRequest, StepItem
from model.kernels.library import open_library
from model.kernels.recording import recorded_bytes
from model.kv_cache import BLOCK_SIZE
from model.machine import cgroup_free_bytes, free_bytes
from model.plan import kernel_bytes, plan_memory
from model.runner import ModelRunner, RunnerOptions
from model.sampling.sampling_params import SamplingParams
from tests.model.decoders import CPU, DOCUMENT, EVERYTHING_ELSE, GPT2_LIKE, LLAMA_LIKE, random_decoder
from tests.model.folders import CONFIG, write_folder
from tests.model.kernels.paths import PATHS
from tests.model.live_bytes import LiveBytes

MB = 10**6


def plan(
    config: DecoderConfig = DOCUMENT,
    dtype: torch.dtype = torch.float32,
    free: int = 10**12,
    is_native: bool = False,
    **changes: int,
) -> MemoryPlan:
    """A plan for a CPU with so much free memory."""
    settings = {"kv_cache_tokens": 0, "max_batch_tokens": 64, "max_num_seqs": 4, "speculative_tokens": 0}
    settings["base_bytes"] = 200 * MB
    return plan_memory(
        build_empty(config), dtype, "cpu", is_native=is_native, **(settings | changes), free_bytes=free
    )


def test_the_sum_is_the_sum_of_its_parts() -> None:
    it = plan(dataclasses.replace(DOCUMENT, is_output_tied=False))
    layer = 4 * (32 * 32 + 32) + 2 * 2 * 32 + 2 * 32 * 64 + 64 + 32
    assert it.weight_bytes == 4 * (3 * layer + 2 * 97 * 32) + 4 * 256 * 32, "the last: the table of positions"
    assert it.kv_bytes_per_token == 2 * 3 * 4 * 16 * 4, "keys and values, 3 layers, 4 heads of 16"
    assert it.kv_cache_tokens == 4 * 256
    assert it.kv_cache_bytes == 1024 * it.kv_bytes_per_token
    assert it.total_bytes == it.base_bytes + it.weight_bytes + it.kv_cache_bytes + it.step_bytes


def test_a_tied_output_and_half_the_width_take_less() -> None:
    separate = plan(dataclasses.replace(LLAMA_LIKE, is_output_tied=False))
    tied = plan(dataclasses.replace(LLAMA_LIKE, is_output_tied=True))
    assert separate.weight_bytes - tied.weight_bytes == 4 * 97 * 32
    half = plan(dataclasses.replace(LLAMA_LIKE, is_output_tied=True), torch.bfloat16)
    tables = 2 * 4 * 256 * 4  # cosines and sines stay in float32
    assert tied.weight_bytes - tables == 2 * (half.weight_bytes - tables)
    assert tied.kv_bytes_per_token == 2 * half.kv_bytes_per_token


def test_it_says_how_many_sequences_fit_at_each_length() -> None:
    assert plan().num_sequences == ((64, 16), (128, 8), (256, 4))
    odd = plan(dataclasses.replace(DOCUMENT, max_positions=200), kv_cache_tokens=1000)
    assert odd.kv_cache_tokens == 1008, "whole blocks"
    assert odd.num_sequences == ((64, 15), (128, 7), (200, 4))
    assert plan(dataclasses.replace(DOCUMENT, max_positions=20)).num_sequences == ((20, 4),)


def test_a_cache_that_nobody_asked_for_takes_at_most_half_of_what_is_left() -> None:
    whole = plan()
    taken = whole.weight_bytes + whole.step_bytes
    short = plan(free=taken + whole.kv_cache_bytes)
    assert short.kv_cache_bytes == whole.kv_cache_bytes // 2
    asked = plan(free=taken + whole.kv_cache_bytes, kv_cache_tokens=1024)
    assert asked.kv_cache_bytes == whole.kv_cache_bytes


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    whole = plan()
    taken, smallest = whole.weight_bytes + whole.step_bytes, 64 * whole.kv_bytes_per_token
    assert plan(free=taken + smallest).kv_cache_tokens == 64, "the longest step fits, and nothing else"
    with pytest.raises(LoadError, match="the smallest KV cache, 64 tokens, takes") as caught:
        plan(free=taken + smallest - 1)
    for figure in (smallest, whole.weight_bytes, whole.step_bytes, smallest - 1, taken + smallest - 1):
        assert f"{figure:,}" in str(caught.value)
    with pytest.raises(LoadError, match=r"kv_cache_tokens is 2000000, which takes 3,072,000,000 bytes"):
        plan(free=10**9, kv_cache_tokens=2 * 10**6)
    with pytest.raises(LoadError, match=r"of a step's buffers, 0 of 0 free bytes are left"):
        plan(free=0)


def item(num_tokens: int, end: int, targets: bool = False, num_drafts: int = 0) -> StepItem:
    ids = [0] * num_tokens
    request = SampleRequest(
        params=SamplingParams(top_p=0.9, seed=1, top_n_tokens=5, repetition_penalty=1.2),
        token_ids=[0] * end,
        num_prompt_tokens=end,
    )
    return StepItem(
        token_ids=ids,
        start=end - num_tokens,
        block_table=range(-(-end // BLOCK_SIZE)),
        sample=request,
        num_drafts=num_drafts,
        target_ids=ids if targets else (),
    )


SHAPES: dict[str, dict[str, Any]] = {
    "feed-forward": {"hidden_size": 64, "feed_forward_size": 1024},
    "gated": {"hidden_size": 64, "feed_forward_size": 1024, "activation": "silu", "gated": True},
    "vocabulary": {"vocab_size": 20_000},
    "one key head": {"hidden_size": 256, "num_heads": 8, "num_kv_heads": 1},
    "long context": {"max_positions": 4096, "num_heads": 8, "num_kv_heads": 2, "positions": "rotary"},
}


@PATHS
@pytest.mark.parametrize("num_drafts", [0, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_step_takes_what_was_planned_and_no_more(
    tmp_path: Path, changes: dict[str, Any], dtype: str, num_drafts: int, path: str
) -> None:
    """Within a factor of two from below: only the greatest moment counts, and its terms are upper bounds."""
    write_folder(tmp_path, **changes)
    end = (CONFIG | changes)["max_positions"]
    options = RunnerOptions(
        model_id="a", dtype=dtype, kernels=path, num_threads=1, kv_cache_tokens=end, max_batch_tokens=96,
        max_num_seqs=16, speculative_tokens=num_drafts,
    )  # fmt: skip
    runner = ModelRunner.load(tmp_path, options, lambda done, total: None)
    peaks = []
    for items in (
        [item(96, end, targets=True)],
        [item(1 + num_drafts, end, num_drafts=num_drafts) for _ in range(16)],
        [item(81, end, targets=True), *(item(1, end) for _ in range(15))],
    ):
        with LiveBytes() as live:
            runner.execute(items)
        peaks.append(live.peak)
    planned = tensor_bytes(runner)
    assert max(peaks) <= planned <= 2 * max(peaks)


def tensor_bytes(runner: ModelRunner) -> int:
    """The step's part of the plan, without what no `LiveBytes` sees, and what is taken before the step."""
    if runner.decoder.kernels is None:
        return runner.info.memory.step_bytes
    dtype = getattr(torch, runner.info.dtype)
    kept = kernel_bytes(runner.decoder, 96) + recorded_bytes(runner.decoder.config, dtype)
    return runner.info.memory.step_bytes - kept


@PATHS
@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_that_decodes_weights_takes_no_more_than_was_planned(
    tmp_path: Path, dtype: str, quantize: str, path: str
) -> None:
    write_folder(tmp_path, hidden_size=256, feed_forward_size=2048)
    options = RunnerOptions(
        model_id="a", dtype=dtype, quantize=quantize, kernels=path, num_threads=1, max_batch_tokens=96,
        max_num_seqs=16,
    )  # fmt: skip
    runner = ModelRunner.load(tmp_path, options)
    with LiveBytes() as live:
        runner.execute([item(96, 128, targets=True)])
    assert live.peak <= tensor_bytes(runner) <= 3 * live.peak


PARTS: dict[str, dict[str, Any]] = {
    "experts": {"hidden_size": 64, "experts": Experts(
        num_experts=7, num_chosen=2, feed_forward_size=1024, is_renormalized=True, shared_size=512
    )},
    "many experts": {"experts": Experts(
        num_experts=300, num_chosen=2, feed_forward_size=8, is_renormalized=True
    )},
    "windows": {"max_positions": 4096, "windows": (None, 70, 4000)},
    "ALiBi": {
        "max_positions": 1024, "positions": "alibi", "rotations": (), "alibi_slopes": (0.5, 0.2, 0.1, 0.1),
        "experts": None,
    },
    "side by side": {
        "hidden_size": 2048, "is_parallel": True, "norm_placement": "pre", "experts": None,
    },
}  # fmt: skip


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", PARTS.values(), ids=PARTS)
def test_the_parts_of_other_families_take_no_more_than_was_planned(
    tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype, path: str
) -> None:
    write_folder(tmp_path)
    some = ModelRunner.load(tmp_path, RunnerOptions(model_id="a", num_threads=1, kv_cache_tokens=64))
    decoder = random_decoder(dataclasses.replace(EVERYTHING_ELSE, **changes), dtype)
    end = decoder.config.max_positions
    kernels = open_library(path)
    decoder.use(kernels)
    memory = plan(
        decoder.config, dtype, is_native=kernels is not None,
        kv_cache_tokens=end, max_batch_tokens=96, max_num_seqs=16,
    )  # fmt: skip
    name = str(dtype).removeprefix("torch.")
    info = dataclasses.replace(some.info, dtype=name, num_blocks=end // BLOCK_SIZE, memory=memory)
    runner = ModelRunner(decoder, info)
    peaks = []
    for items in ([item(96, end)], [item(81, end), *(item(1, end) for _ in range(15))]):
        with LiveBytes() as live:
            runner.execute(items)
        peaks.append(live.peak)
    assert max(peaks) <= memory.step_bytes


def write_cgroup(root: Path, lines: str, files: dict[str, str]) -> None:
    for name, text in {"proc/self/cgroup": lines, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_memory_limits_of_version_2_are_read_up_to_the_top(tmp_path: Path) -> None:
    write_cgroup(
        tmp_path,
        "0::/a/b\n",
        {
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "600\n",
            "sys/fs/cgroup/a/b/memory.stat": "anon 500\ninactive_file 100\n",
            "sys/fs/cgroup/a/memory.max": "1000\n",
            "sys/fs/cgroup/a/memory.current": "700\n",
            "sys/fs/cgroup/a/memory.stat": "anon 500\ninactive_file 150\nactive_file 50\n",
        },
    )
    assert list(cgroup_free_bytes(tmp_path)) == [1000 - 700 + 150]


def test_memory_limits_of_version_1_are_read_where_a_container_sees_them(tmp_path: Path) -> None:
    """The path is the host's and leads nowhere; the container's own group is the top."""
    write_cgroup(
        tmp_path,
        "5:cpuset:/\n4:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n0::/\n",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1200\n",
            "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 20\n",
        },
    )
    assert list(cgroup_free_bytes(tmp_path)) == [0]


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert list(cgroup_free_bytes(tmp_path)) == []
    assert free_bytes(CPU) > 10 * MB


def test_a_control_group_s_limit_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.machine.cgroup_free_bytes", lambda: iter([5 * MB, 7 * MB]))
    assert free_bytes(CPU) == 5 * MB


def test_a_plan_is_what_the_server_would_say(tmp_path: Path) -> None:
    """But for the fingerprint, for which the weights are read, and for what this process holds meanwhile."""
    write_folder(tmp_path)
    options = RunnerOptions(model_id="a", num_threads=1, max_batch_tokens=32, max_num_seqs=2)
    planned = ModelRunner.plan(tmp_path, options)
    loaded = ModelRunner.load(tmp_path, options, lambda done, total: None).info
    assert planned.fingerprint == ""
    same = dataclasses.replace(
        planned.memory, base_bytes=loaded.memory.base_bytes, free_bytes=loaded.memory.free_bytes
    )
    assert dataclasses.replace(planned, fingerprint=loaded.fingerprint, memory=same) == loaded
    assert loaded.memory.kv_cache_tokens == loaded.num_blocks * loaded.block_size


def test_gpt2_s_learned_positions_are_weights() -> None:
    shorter = dataclasses.replace(GPT2_LIKE, max_positions=128)
    assert plan(GPT2_LIKE).weight_bytes - plan(shorter).weight_bytes == 128 * 32 * 4
