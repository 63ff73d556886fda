"""Model folders: what a whole one gives. Broken ones: test_hostile_folders.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import INDEX, WEIGHTS
from model.counting import count_parameters
from model.families import family_of, known_families
from model.loader import load, open_folder
from tests.model.decoders import whole
from tests.model.folders import shard, stored_tensors, write_folder
from tests.model.live_bytes import LiveBytes


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


@pytest.mark.parametrize("length", [0x1_0280, 0x1_0480, 0x1_3C20], ids=hex)
def test_a_header_is_known_whatever_its_length_looks_like(folder: Path, length: int) -> None:
    """These begin as a pickle does, or a page of HTML."""
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = length.to_bytes(8, "little") + content[8:end].ljust(length)
    (folder / WEIGHTS).write_bytes(header + content[end:])
    assert open_folder(folder).end_token_ids == (0, 2)


def test_an_end_token_beyond_the_vocabulary_is_none(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 50256]}')
    assert open_folder(folder).end_token_ids == (2,)


def test_auto_keeps_the_stored_dtype_and_others_convert(tmp_path: Path) -> None:
    write_folder(tmp_path, torch.bfloat16)
    assert load(open_folder(tmp_path)).dtype == torch.bfloat16
    assert load(open_folder(tmp_path, "float32")).decoder.embedding.weight.dtype == torch.float32


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_float64_is_served_as_the_float32_that_it_is_rounded_to(folder: Path, quantize: str) -> None:
    expected = load(open_folder(folder, quantize=quantize)).decoder.state_dict()
    save_file({name: t.double() for name, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    loaded = load(open_folder(folder, quantize=quantize)).decoder.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.allclose(tensor.float(), expected[name].float(), atol=1e-6)


def test_parameters_are_counted_once(folder: Path) -> None:
    num_parameters = count_parameters(load(open_folder(folder)).decoder)
    assert num_parameters == sum(t.numel() for t in load_file(folder / WEIGHTS).values())


def test_progress_ends_with_everything_read(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(open_folder(folder), on_progress=lambda done, total: seen.append((done, total)))
    total = sum(t.nbytes for t in load_file(folder / WEIGHTS).values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_shards_give_the_same_decoder(folder: Path) -> None:
    whole_file = load(open_folder(folder)).decoder.state_dict()
    shard(folder)
    assert open_folder(folder).checkpoint.name == INDEX
    sharded = load(open_folder(folder)).decoder.state_dict()
    assert whole_file.keys() == sharded.keys()
    assert all(torch.equal(whole_file[name], sharded[name]) for name in sharded)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_loading_takes_the_weights_and_one_tensor_at_most(
    tmp_path: Path, stored: torch.dtype, wanted: str
) -> None:
    """Where nothing is converted, the weights alone: each is read to where it stays."""
    write_folder(tmp_path, stored, feed_forward_size=5000)
    folder = open_folder(tmp_path, wanted)
    with LiveBytes() as live:
        decoder = load(folder).decoder
    weights = sum(parameter.nbytes for parameter in decoder.parameters())
    largest = max(tensor.num_bytes for tensor in folder.checkpoint.tensors)
    scalars = 1000  # the bounds by which NaN is found
    assert live.peak <= weights + scalars + (0 if folder.dtype == stored else largest)


@pytest.mark.parametrize(
    ("quantize", "is_sharded"), [("int8", False), ("int4", False), ("none", True), ("int8", True)]
)
def test_loading_shards_or_in_fewer_bits_takes_no_more(
    tmp_path: Path, quantize: str, is_sharded: bool
) -> None:
    """What is quantized is so 256 rows at a time, for which some dozens of bytes a number are room enough."""
    write_folder(tmp_path, vocab_size=40_000)
    if is_sharded:
        shard(tmp_path)
    folder = open_folder(tmp_path, quantize=quantize)
    with LiveBytes() as live:
        decoder = load(folder).decoder
    weights = sum(parameter.nbytes for parameter in decoder.parameters())
    largest = max(tensor.num_bytes for tensor in folder.checkpoint.tensors)
    rows = 0 if quantize == "none" else 256 * 48 * 32
    assert rows < largest / 10
    assert live.peak <= weights + 1000 + (0 if quantize == "none" else largest + rows)


def test_a_tensor_of_many_pieces_is_read_whole(tmp_path: Path) -> None:
    saved = write_folder(tmp_path, vocab_size=40_000)  # 5 MB of embeddings
    loaded = load(open_folder(tmp_path)).decoder
    assert torch.equal(loaded.embedding.weight, saved.embedding.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_whose_sum_is_infinite_are_finite_all_the_same(folder: Path, dtype: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    huge = tensors["embedding.weight"].fill_(torch.finfo(torch.bfloat16).max)
    assert huge.sum() == torch.inf
    save_file(tensors, folder / WEIGHTS)
    assert torch.equal(load(open_folder(folder, dtype)).decoder.embedding.weight.float(), huge)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_is_the_stored_tensor_in_memory_of_its_own(folder: Path, dtype: str) -> None:
    """Tensors that change their format are all read to one place."""
    tensors = load_file(folder / WEIGHTS)
    decoder = load(open_folder(folder, dtype)).decoder
    parameters = stored_tensors(decoder)
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, tensors[name].to(getattr(torch, dtype)))
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters.values()}) == len(
        parameters
    )


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "vocab.json", "a.tiktoken",
     "tokenizer.model.v3",
     "additional_chat_templates/tool_use.jinja"],
)  # fmt: skip
def test_the_fingerprint_covers_every_file_that_decides(folder: Path, name: str) -> None:
    before = load(open_folder(folder)).fingerprint
    assert before == load(open_folder(folder)).fingerprint
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((path.read_bytes() if path.exists() else b"{}") + b" ")
    assert load(open_folder(folder)).fingerprint != before


@pytest.mark.parametrize("name", ["embedding.weight", "layers.0.attention.wo.bias"])
def test_the_fingerprint_covers_every_tensor(folder: Path, name: str) -> None:
    before = load(open_folder(folder)).fingerprint
    tensors = load_file(folder / WEIGHTS)
    tensors[name].view(-1)[-1] *= 1.0001
    save_file(tensors, folder / WEIGHTS)
    assert load(open_folder(folder)).fingerprint != before


def test_the_fingerprint_is_what_its_docstring_says(tmp_path: Path) -> None:
    write_folder(tmp_path, vocab_size=20_000)  # 2.4 MB of embeddings
    expected = hashlib.sha256()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        content = (tmp_path / name).read_bytes()
        expected.update(f"{name} {len(content)} ".encode() + hashlib.sha256(content).digest())
    folder = open_folder(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    expected.update(hashlib.sha256(content[: folder.checkpoint.tensors[0].begin]).digest())
    for tensor in folder.checkpoint.tensors:
        data = content[tensor.begin : tensor.begin + tensor.num_bytes]
        for begin in range(0, len(data), 2**17):
            expected.update(hashlib.sha256(data[begin : begin + 2**17]).digest())
    assert load(folder).fingerprint == expected.hexdigest()


def test_every_family_is_found_by_its_file() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "model" / "families").glob("[!_]*.py")}
    assert {model_type.replace("-", "_") for model_type in known_families()} == files
    assert all(family_of(model_type).FIELDS.__struct_fields__ for model_type in known_families())


def test_tensors_of_a_tied_model_are_stored_once(folder: Path) -> None:
    assert "output.weight" not in stored_tensors(load(open_folder(folder)).decoder)
