"""Model folders: what a whole one gives, and the one clear line that a broken one ends in."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.families import family_of, known_families
from model.loader import LoadError, count_parameters, fingerprint, load, open_folder
from tests.model.decoders import whole
from tests.model.folders import CONFIG, stored_tensors, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    return tmp_path


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "separate output"])
def test_a_folder_gives_the_decoder_that_was_saved(tmp_path: Path, is_tied: bool) -> None:
    saved = write_folder(tmp_path, tie_word_embeddings=is_tied)
    loaded = load(open_folder(tmp_path))
    ids = list(range(50))
    assert torch.equal(whole(loaded.decoder, ids), whole(saved, ids))
    assert loaded.end_token_ids == (0, 2)
    assert (loaded.decoder.output.weight is loaded.decoder.embedding.weight) == is_tied
    assert not any(parameter.requires_grad for parameter in loaded.decoder.parameters())


def test_auto_keeps_the_stored_dtype_and_others_convert(tmp_path: Path) -> None:
    write_folder(tmp_path, torch.bfloat16)
    assert load(open_folder(tmp_path)).dtype == torch.bfloat16
    assert load(open_folder(tmp_path, "float32")).decoder.embedding.weight.dtype == torch.float32


def test_parameters_are_counted_once(folder: Path) -> None:
    num_parameters = count_parameters(load(open_folder(folder)).decoder)
    assert num_parameters == sum(t.numel() for t in load_file(folder / "model.safetensors").values())


def test_progress_ends_with_everything_read(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(open_folder(folder), on_progress=lambda done, total: seen.append((done, total)))
    total = (folder / "model.safetensors").stat().st_size
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]
)
def test_the_fingerprint_covers_every_file_that_decides(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    assert before == fingerprint(folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(folder) != before


def test_the_fingerprint_is_what_its_docstring_says(folder: Path) -> None:
    expected = hashlib.sha256()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        expected.update(f"{name} {len(content)} ".encode() + hashlib.sha256(content).digest())
    assert fingerprint(folder) == expected.hexdigest()


def change_config(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = CONFIG | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return spoil


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = dict(load_file(folder / "model.safetensors"))
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: No such file"),
    "config not JSON": (write("config.json", b"{"), "config.json: "),
    "config not UTF-8": (write("config.json", b"\xff"), "config.json: "),
    "config a list": (write("config.json", b"[]"), "config.json: must hold an object, holds list"),
    "no model_type": (change_config(model_type=...), "config.json: model_type 'None' is not known"),
    "near model_type": (change_config(model_type="verbatm"), "known: .*; did you mean 'verbatim'?"),
    "path as model_type": (change_config(model_type="../os"), "is not known"),
    "missing field": (change_config(num_layers=...), "config.json: .*num_layers"),
    "unknown field": (change_config(num_experts=8), "config.json: .*num_experts"),
    "wrong type": (change_config(hidden_size="32"), r"config.json: .*hidden_size"),
    "unknown activation": (change_config(activation="swish"), "config.json: .*activation"),
    "impossible size": (change_config(num_layers=0), "num_layers is 0, must be at least 1"),
    "negative epsilon": (change_config(norm_eps=-1.0), "norm_eps is -1.0, must be above 0 and below 1e30"),
    "infinite scale": (change_config(embedding_scale=1e300), "embedding_scale is 1e[+]300, must be above 0"),
    "NaN weights": (
        change_tensors(lambda t: t["embedding.weight"].fill_(float("nan"))),
        "model.safetensors: tensor 'embedding.weight' holds NaN or infinity",
    ),
    "no heads": (change_config(num_heads=0), "num_heads is 0, must be at least 1"),
    "generation_config not JSON": (write("generation_config.json", b"x"), "generation_config.json: "),
    "end id outside": (
        write("generation_config.json", b'{"eos_token_id": 300}'),
        "generation_config.json: eos_token_id 300 must be an integer from 0 to 299",
    ),
    "end id a text": (write("generation_config.json", b'{"eos_token_id": "a"}'), "eos_token_id 'a' must be"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: there is no such file"),
    "weights truncated": (truncate, "model.safetensors: "),
    "weights empty": (write("model.safetensors", b""), "model.safetensors: "),
    "weights an LFS pointer": (write("model.safetensors", LFS_POINTER), "model.safetensors: "),
    "weights HTML": (write("model.safetensors", b"<html>not found</html>" * 9), "model.safetensors: "),
    "header too long": (write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "model.safetensors: "),
    "missing tensor": (
        change_tensors(lambda t: t.pop("layers.1.attention.wo.bias")),
        "tensor 'layers.1.attention.wo.bias' is missing",
    ),
    "left-over tensor": (
        change_tensors(lambda t: t.update(extra=torch.zeros(1))),
        "model.safetensors: tensor 'extra' has no place in this model",
    ),
    "tensor of another shape": (
        change_tensors(lambda t: t.update({"layers.0.feed_forward.w1.weight": torch.zeros(32, 48)})),
        r"tensor 'layers.0.feed_forward.w1.weight' has shape \[32, 48\], expected \[48, 32\]",
    ),
    "integer tensors": (
        change_tensors(lambda t: t.update({"embedding.weight": torch.zeros(300, 32, dtype=torch.int64)})),
        r"tensors are \['F32', 'I64'\], must be one of",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_ends_in_one_clear_line(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(LoadError, match=message) as caught:
        load(open_folder(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) not in str(caught.value)


def test_every_family_is_found_by_its_file() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "model" / "families").glob("[!_]*.py")}
    assert {model_type.replace("-", "_") for model_type in known_families()} == files
    assert all(family_of(model_type).FIELDS.__struct_fields__ for model_type in known_families())


def test_tensors_of_a_tied_model_are_stored_once(folder: Path) -> None:
    assert "output.weight" not in stored_tensors(load(open_folder(folder)).decoder)
