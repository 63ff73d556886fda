"""The folders that speed is measured on are such as a server takes, and the same each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.checkpoint import SHAPES, config, tensor_shapes, write
from model.interface import SampleRequest, StepItem
from model.runner import ModelRunner, RunnerOptions
from model.sampling.sampling_params import SamplingParams
from server.text.tokenizer import Tokenizer


def num_parameters(shape: str) -> int:
    total = 0
    for sizes in tensor_shapes(config(shape)).values():
        total += sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
    return total


@pytest.mark.parametrize(("shape", "millions"), [("1.1b", 1100), ("125m", 135), ("12m", 12)])
def test_a_shape_is_as_large_as_its_name_says(shape: str, millions: int) -> None:
    assert num_parameters(shape) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_smallest_is_served_and_is_the_same_each_time(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        write("12m", tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).digest())
    assert digests[0] == digests[1]
    folder = tmp_path / "one"
    model = ModelRunner.load(folder, RunnerOptions(model_id="12m", num_threads=1, kv_cache_tokens=64))
    assert (model.info.dtype, model.info.num_parameters) == ("bfloat16", num_parameters("12m"))
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("Once upon a time, überall ☃")
    assert tokenizer.decode(ids) == "Once upon a time, überall ☃"
    assert max(ids) < SHAPES["12m"]["vocab_size"]
    wish = SampleRequest(params=SamplingParams(temperature=0.0), token_ids=ids, num_prompt_tokens=len(ids))
    [output] = model.execute([StepItem(token_ids=ids, start=0, block_table=range(4), sample=wish)])
    assert output.error is None
    assert len(output.tokens) == 1
