"""What is said of a model folder without reading its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import INDEX, WEIGHTS
from model.folder import LoadError
from model.inspection import inspect_folder
from tests.model.folders import shard, write_folder


def test_a_report_tells_parts_formats_and_sizes(tmp_path: Path) -> None:
    decoder = write_folder(tmp_path, torch.bfloat16)
    report = inspect_folder(tmp_path)
    layer = {
        "attention": 4 * (32 * 32 + 32),
        "norms": 2 * 2 * 32,
        "feed_forward": 2 * 32 * 48 + 32 + 48,
    }
    assert report.parts == {"embedding": 300 * 32} | {name: 2 * size for name, size in layer.items()}
    assert report.num_parameters == sum(report.parts.values())
    assert report.num_parameters == sum(parameter.numel() for parameter in decoder.parameters())
    assert (report.model_type, report.dtype, report.stored_dtypes) == (
        "verbatim",
        "bfloat16",
        {"bfloat16": 33},
    )
    assert (report.num_files, report.num_tensors, report.num_bytes) == (1, 33, 2 * report.num_parameters)
    assert report.decoder["max_positions"] == 128
    assert report.decoder["is_output_tied"] is True
    assert report.end_token_ids == (0, 2)
    assert report.unusual == ()


def test_shards_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    whole = inspect_folder(tmp_path)
    shard(tmp_path)
    report = inspect_folder(tmp_path)
    assert (report.num_files, report.num_bytes, report.parts) == (2, whole.num_bytes, whole.parts)
    assert report.unusual == ()


@pytest.mark.parametrize(
    ("name", "content", "has"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("additional_chat_templates/tool_use.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("README.md", "chat_template", False),
    ],
)
def test_a_chat_template_is_found_where_it_may_be(tmp_path: Path, name: str, content: str, has: bool) -> None:
    write_folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert inspect_folder(tmp_path).has_chat_template == has


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "vocab.json", "qwen.tiktoken"])
def test_a_tokenizer_of_any_kind_is_one(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / name)
    assert inspect_folder(tmp_path).unusual == ()


def test_what_is_unusual_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = {
        name: tensor.half() if tensor.dim() == 1 else tensor
        for name, tensor in load_file(tmp_path / WEIGHTS).items()
    }
    save_file(tensors, tmp_path / WEIGHTS)
    shard(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {"metadata": {"total_size": 5}}))
    for name in ("modeling_mine.py", "pytorch_model.bin", "adapter.safetensors"):
        (tmp_path / name).write_text("x")
    os.unlink(tmp_path / "tokenizer.json")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    report = inspect_folder(tmp_path)
    assert report.unusual == (
        "it brings code of its own, which is never run",
        "'pytorch_model.bin' may be a pickle, and is not read",
        "'adapter.safetensors' is not read (1 such in all)",
        "its weights are of several formats: float16, float32",
        "float16 is converted to float32, which takes twice the memory, unless dtype is bfloat16",
        "it has no end token: answers end by their length or a stop string",
        "it has no tokenizer",
        f"{INDEX} tells of 5 bytes, but there are {report.num_bytes}",
    )


def test_no_tensor_is_read(tmp_path: Path) -> None:
    """Every tensor is NaN, which nobody sees who reads only the header."""
    write_folder(tmp_path)
    tensors = {name: tensor.fill_(float("nan")) for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, tmp_path / WEIGHTS)
    assert inspect_folder(tmp_path).num_tensors == 33


def test_what_cannot_be_served_is_refused_as_the_server_would(tmp_path: Path) -> None:
    write_folder(tmp_path)
    os.truncate(tmp_path / WEIGHTS, 5000)
    with pytest.raises(LoadError, match=f"{WEIGHTS}: is no whole safetensors file"):
        inspect_folder(tmp_path)
