"""Folders that are broken, or made to break us: each ends at once in one line naming file and cause."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import INDEX, WEIGHTS
from model.folder import LoadError
from model.loader import DECIDING_FILES, load, open_folder
from tests.model.folders import CONFIG, shard, write_folder

Spoil = Callable[[Path], object]


def change_config(**changes: object) -> Spoil:
    """With `...` a field goes."""

    def spoil(folder: Path) -> None:
        config = CONFIG | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return spoil


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = dict(load_file(folder / name))
        change(tensors)
        save_file(tensors, folder / name)

    return spoil


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def change_header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Another header before the same bytes of tensors."""

    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        [length] = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        (folder / WEIGHTS).write_bytes(with_header(json.dumps(header).encode(), content[8 + length :]))

    return spoil


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def overlap(header: dict[str, Any]) -> None:
    """Two biases of one size at one place."""
    header["layers.0.attention.wk.bias"]["data_offsets"] = header["layers.0.attention.wq.bias"][
        "data_offsets"
    ]


def change_index(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """In two shards, whose index is then changed."""

    def spoil(folder: Path) -> None:
        shard(folder)
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return spoil


def both(first: Spoil, second: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        first(folder)
        second(folder)

    return spoil


def sharded(spoil: Spoil) -> Spoil:
    return both(shard, spoil)


def link(name: str, target: str) -> Spoil:
    """A link in the file's place; what was there lies beside the folder, as `outside`."""

    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / "outside")
        (folder / name).symlink_to(target)

    return spoil


def replace_by(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def rename(name: str, other: str) -> Spoil:
    return lambda folder: (folder / name).rename(folder / other)


def lengthen(name: str, num_bytes: int) -> Spoil:
    return lambda folder: os.truncate(folder / name, num_bytes)


def cut_weights(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 10)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
HTML = b"<!DOCTYPE html><html>not found</html>"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BIAS = "layers.1.attention.wo.bias"

CONFIGS: dict[str, tuple[Spoil, str]] = {
    "none": (lambda f: (f / "config.json").unlink(), "config.json: there is no such file"),
    "empty": (write("config.json", b""), "config.json: Expecting value"),
    "not JSON": (write("config.json", b"{"), "config.json: Expecting property name"),
    "not UTF-8": (write("config.json", b"\xff"), "config.json: 'utf-8' codec can't decode"),
    "a list": (write("config.json", b"[]"), "config.json: must hold an object, holds list"),
    "a folder": (replace_by("config.json", Path.mkdir), "config.json: is a folder, must be a file"),
    "a FIFO": (replace_by("config.json", os.mkfifo), "config.json: is no regular file, must be a file"),
    "an LFS pointer": (write("config.json", LFS_POINTER), "config.json: is a Git LFS pointer"),
    "HTML": (write("config.json", HTML), "config.json: is a page of HTML"),
    "deep": (write("config.json", DEEP), "config.json: has too many levels"),
    "100 MB": (lengthen("config.json", 10**8), "config.json: has 100000000 bytes, must be at most 67108864"),
    "a number of 10,000 digits": (
        write("config.json", b'{"vocab_size": ' + b"9" * 10_000 + b"}"),
        "config.json: Exceeds the limit",
    ),
    "a link out of the folder": (
        link("config.json", "../outside"),
        "config.json: is a link that leads out of the model's folder",
    ),
    "a link to nothing": (
        link("config.json", "nowhere"),
        "config.json: is a link to a file that is not there",
    ),
    "a link to itself": (link("config.json", "config.json"), "config.json: cannot be found behind its links"),
    "no model_type": (change_config(model_type=...), "config.json: model_type 'None' is not known"),
    "near model_type": (change_config(model_type="verbatm"), "known: .*; did you mean 'verbatim'?"),
    "path as model_type": (change_config(model_type="../os"), "config.json: model_type '../os' is not known"),
    "code of its own": (
        change_config(model_type="mine", auto_map={"AutoConfig": "modeling.Config"}),
        "config.json: model_type 'mine' is not known.*own code, which auto_map names, is never run",
    ),
    "missing field": (change_config(num_layers=...), "config.json: .*num_layers"),
    "unknown field": (change_config(num_experts=8), "config.json: .*num_experts"),
    "wrong type": (change_config(hidden_size="32"), r"config.json: .*hidden_size"),
    "a number with a fraction": (change_config(hidden_size=32.5), r"config.json: .*hidden_size"),
    "unknown activation": (change_config(activation="swish"), "config.json: .*activation"),
    "impossible size": (change_config(num_layers=0), "config.json: num_layers is 0, must be at least 1"),
    "no heads": (change_config(num_heads=0), "config.json: num_heads is 0, must be at least 1"),
    "negative epsilon": (change_config(norm_eps=-1.0), "norm_eps is -1.0, must be above 0 and below 1e30"),
    "infinite scale": (change_config(embedding_scale=1e300), "embedding_scale is 1e[+]300, must be above 0"),
    "thousands of layers": (
        change_config(num_layers=9_999),
        "has 9999 layers, but 33 tensors in",
    ),
    "endless positions": (change_config(max_positions=10**15), "1000000000000000 positions, at most 4194304"),
    "endless width": (change_config(hidden_size=2**62), "config.json: its sizes are more than a machine"),
    "more than 64 bits": (change_config(vocab_size=2**70), "config.json: its sizes are more than a machine"),
    "quantized": (
        change_config(quantization_config={"quant_method": "gptq"}),
        r"config.json: quantization_config \(gptq\): .*`bits`",
    ),
    "generation_config not JSON": (
        write("generation_config.json", b"x"),
        "generation_config.json: Expecting",
    ),
    "generation_config deep": (write("generation_config.json", DEEP), "generation_config.json: has too many"),
    "end id below 0": (
        write("generation_config.json", b'{"eos_token_id": -300}'),
        "generation_config.json: eos_token_id '-300' must be an integer from 0 on",
    ),
    "end id a text": (write("generation_config.json", b'{"eos_token_id": "a"}'), "eos_token_id 'a' must be"),
    "end id true": (
        write("generation_config.json", b'{"eos_token_id": [true]}'),
        "eos_token_id 'True' must be",
    ),
    "end id in config": (
        both(change_config(eos_token_id=-1), lambda f: (f / "generation_config.json").unlink()),
        "config.json: eos_token_id '-1' must be",
    ),
    "tokenizer a link out": (
        link("tokenizer.json", "../outside"),
        "tokenizer.json: is a link that leads out of the model's folder",
    ),
}

WEIGHTS_FILES: dict[str, tuple[Spoil, str]] = {
    "none": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: there is no such file$"),
    "a pickle alone": (
        rename(WEIGHTS, "pytorch_model.bin"),
        f"{WEIGHTS}: there is no such file; 'pytorch_model.bin' is a pickle, which could run code",
    ),
    "GGUF alone": (rename(WEIGHTS, "model.gguf"), "'model.gguf' is of a format that is not supported"),
    "another name": (rename(WEIGHTS, "a.safetensors"), "'a.safetensors' does not stand for the model"),
    "a variant": (
        rename(WEIGHTS, "model.fp16.safetensors"),
        f"'model.fp16.safetensors' is of the variant 'fp16'; the model itself must be in {WEIGHTS}",
    ),
    "a variant's shard": (
        rename(WEIGHTS, "model.fp16-00001-of-00002.safetensors"),
        "'model.fp16-00001-of-00002.safetensors' is of the variant 'fp16'",
    ),
    "an older variant's shard": (
        rename(WEIGHTS, "model-00001-of-00002.fp16.safetensors"),
        "'model-00001-of-00002.fp16.safetensors' is of the variant 'fp16'",
    ),
    "a shard without its index": (rename(WEIGHTS, FIRST), f"'{FIRST}' does not stand for the model"),
    "float64 beyond float32": (
        change_tensors(lambda t: t.update({BIAS: torch.full((32,), 1e300, dtype=torch.float64)})),
        f"{WEIGHTS}: tensor '{BIAS}' holds NaN or infinity",
    ),
    "a pickle by that name": (write(WEIGHTS, b"PK\x03\x04" + b"x" * 99), f"{WEIGHTS}: is a pickle"),
    "truncated": (cut_weights, f"{WEIGHTS}: is no whole safetensors file"),
    "longer": (lengthen(WEIGHTS, 10**7), f"{WEIGHTS}: is no whole safetensors file"),
    "empty": (write(WEIGHTS, b""), f"{WEIGHTS}: is no whole safetensors file"),
    "an LFS pointer": (write(WEIGHTS, LFS_POINTER), f"{WEIGHTS}: is a Git LFS pointer"),
    "HTML": (write(WEIGHTS, b"\n" + HTML), f"{WEIGHTS}: is a page of HTML"),
    "a folder": (replace_by(WEIGHTS, Path.mkdir), f"{WEIGHTS}: is a folder, must be a file"),
    "a FIFO": (replace_by(WEIGHTS, os.mkfifo), f"{WEIGHTS}: is no regular file"),
    "a link out of the folder": (link(WEIGHTS, "../outside"), f"{WEIGHTS}: is a link that leads out"),
    "header too long": (write(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), f"{WEIGHTS}: is no whole"),
    "header not JSON": (write(WEIGHTS, with_header(b"{]")), f"{WEIGHTS}: is no whole"),
    "header deep": (write(WEIGHTS, with_header(DEEP)), f"{WEIGHTS}: is no whole"),
    "header empty": (write(WEIGHTS, with_header(b"{}")), f"{WEIGHTS}: holds no tensors"),
    "overlapping": (change_header(overlap), f"{WEIGHTS}: is no whole safetensors file"),
    "offsets backwards": (
        change_header(lambda h: h[BIAS].update(data_offsets=[128, 0])),
        f"{WEIGHTS}: is no whole safetensors file",
    ),
    "offsets far away": (
        change_header(lambda h: h[BIAS].update(data_offsets=[2**62, 2**62 + 128])),
        f"{WEIGHTS}: is no whole safetensors file",
    ),
    "shape beyond its bytes": (
        change_header(lambda h: h[BIAS].update(shape=[2**62, 16])),
        f"{WEIGHTS}: is no whole safetensors file",
    ),
    "a negative shape": (change_header(lambda h: h[BIAS].update(shape=[-32])), f"{WEIGHTS}: is no whole"),
    "unknown dtype": (change_header(lambda h: h[BIAS].update(dtype="F31")), f"{WEIGHTS}: is no whole"),
    "same bytes, another dtype": (
        change_header(lambda h: h[BIAS].update(dtype="I32")),
        f"{WEIGHTS}: tensor '{BIAS}' is of int32, must be one of F32, BF16, F16, F64",
    ),
    "same bytes, another shape": (
        change_header(lambda h: h[BIAS].update(shape=[2, 16])),
        re.escape(f"{WEIGHTS}: tensor '{BIAS}' has shape [2, 16], expected [32]"),
    ),
    "nothing in a tensor": (
        change_tensors(lambda t: t.update(extra=torch.zeros(10**9, 0))),
        re.escape(f"{WEIGHTS}: tensor 'extra' has shape [1000000000, 0], which holds nothing"),
    ),
    "missing tensor": (
        change_tensors(lambda t: [t.pop(BIAS), t.pop("layers.1.attention.wo.weight")]),
        rf"{WEIGHTS}: tensor '{BIAS}' is missing \(2 in all\)",
    ),
    "left-over tensor": (
        change_tensors(lambda t: t.update(extra=torch.zeros(1))),
        f"{WEIGHTS}: tensor 'extra' has no place in this model",
    ),
    "another shape": (
        change_tensors(lambda t: t.update({"layers.0.feed_forward.w1.weight": torch.zeros(32, 48)})),
        r"tensor 'layers.0.feed_forward.w1.weight' has shape \[32, 48\], expected \[48, 32\]",
    ),
    "integers": (
        change_tensors(lambda t: t.update({"embedding.weight": torch.zeros(300, 32, dtype=torch.int64)})),
        "tensor 'embedding.weight' is of int64, must be one of F32, BF16, F16, F64",
    ),
    "eight-bit floats": (
        change_tensors(lambda t: t.update({BIAS: torch.zeros(32).to(torch.float8_e4m3fn)})),
        f"tensor '{BIAS}' is of float8_e4m3fn, must be one of",
    ),
    "NaN": (
        change_tensors(lambda t: t["embedding.weight"][299].fill_(float("nan"))),
        f"{WEIGHTS}: tensor 'embedding.weight' holds NaN or infinity",
    ),
    "infinity": (
        change_tensors(lambda t: t[BIAS][3].fill_(float("-inf"))),
        f"'{BIAS}' holds NaN or infinity",
    ),
}

SHARDS: dict[str, tuple[Spoil, str]] = {
    "missing": (
        sharded(lambda f: (f / SECOND).unlink()),
        f"{SECOND}: there is no such file, which {INDEX} names",
    ),
    "truncated": (sharded(lambda f: os.truncate(f / SECOND, 999)), f"{SECOND}: is no whole safetensors file"),
    "a link out of the folder": (sharded(link(SECOND, "../outside")), f"{SECOND}: is a link that leads out"),
    "index not JSON": (sharded(write(INDEX, b"x")), f"{INDEX}: Expecting value"),
    "index deep": (sharded(write(INDEX, DEEP)), f"{INDEX}: has too many levels"),
    "index without a map": (sharded(write(INDEX, b"{}")), f"{INDEX}: weight_map must be an object"),
    "index with an empty map": (change_index(lambda m: m.clear()), f"{INDEX}: weight_map must be an object"),
    "index with a number": (change_index(lambda m: m.update({BIAS: 7})), f"{INDEX}: '7' is no name of a"),
    "index pointing up": (
        change_index(lambda m: m.update({BIAS: "../outside.safetensors"})),
        f"{INDEX}: '../outside.safetensors' is no name of a safetensors file in this folder",
    ),
    "index pointing elsewhere": (
        change_index(lambda m: m.update({BIAS: "/etc/passwd"})),
        f"{INDEX}: '/etc/passwd' is no name",
    ),
    "index pointing at a pickle": (
        change_index(lambda m: m.update({BIAS: "pytorch_model.bin"})),
        f"{INDEX}: 'pytorch_model.bin' is no name of a safetensors file",
    ),
    "a tensor in two": (
        sharded(change_tensors(lambda t: t.update({"embedding.weight": torch.zeros(300, 32)}), SECOND)),
        f"{SECOND}: tensor 'embedding.weight' is in {FIRST}, too",
    ),
    "a tensor that the index lacks": (
        change_index(lambda m: m.pop(BIAS)),
        f"{SECOND}: tensor '{BIAS}' is not in {INDEX}",
    ),
    "a tensor that is not there": (
        change_index(lambda m: m.update(extra=FIRST)),
        f"{FIRST}: tensor 'extra' is missing, which {INDEX} says to be there",
    ),
    "a tensor in the other": (
        change_index(lambda m: m.update({BIAS: FIRST})),
        f"{FIRST}: tensor '{BIAS}' is missing, which {INDEX} says to be there",
    ),
    "a tensor in none": (
        both(change_index(lambda m: m.pop(BIAS)), change_tensors(lambda t: t.pop(BIAS), SECOND)),
        rf"{INDEX}: tensor '{BIAS}' is missing \(1 in all\)",
    ),
    "NaN": (
        sharded(change_tensors(lambda t: t[BIAS].fill_(float("nan")), SECOND)),
        f"{SECOND}: tensor '{BIAS}' holds NaN or infinity",
    ),
}


BROKEN = {
    f"{kind}: {name}": case
    for kind, table in (("config", CONFIGS), ("weights", WEIGHTS_FILES), ("shards", SHARDS))
    for name, case in table.items()
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_ends_in_one_clear_line(tmp_path: Path, spoil: Spoil, message: str) -> None:
    folder = tmp_path / "model"
    write_folder(folder)
    spoil(folder)
    with pytest.raises(LoadError, match=f"(?s)^.*{message}") as caught:
        load(open_folder(folder))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert len(str(caught.value)) < 1000
    file, _, _ = str(caught.value).partition(": ")
    assert file in (*DECIDING_FILES, WEIGHTS, INDEX, FIRST, SECOND)


def test_what_a_check_of_headers_can_see_is_seen_without_reading_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred gigabytes that do not fit should not be read first."""
    write_folder(tmp_path)
    change_tensors(lambda t: t.update(extra=torch.zeros(1)))(tmp_path)
    with pytest.raises(LoadError, match="has no place"):
        open_folder(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    write_folder(tmp_path)
    folder = open_folder(tmp_path)
    os.truncate(tmp_path / WEIGHTS, 20_000)
    with pytest.raises(LoadError, match=rf"^{WEIGHTS}: tensor '.*' ends too early"):
        load(folder)


def test_no_code_of_a_folder_ever_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files by the names of our own modules and of remote code, each of which would leave a trace."""
    write_folder(tmp_path)
    for name in (
        "modeling_verbatim",
        "verbatim",
        "configuration_verbatim",
        "torch",
        "sitecustomize",
        "tokenizers",
    ):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch trace'\ntR.")
    monkeypatch.chdir(tmp_path)
    load(open_folder(tmp_path))
    assert not (tmp_path / "trace").exists()


def test_a_hub_s_cache_is_served_through_its_links(tmp_path: Path) -> None:
    """Its snapshots hold links to blobs beside them; links to anywhere else stay refused."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    write_folder(snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert load(open_folder(snapshot)).fingerprint
    (snapshot / WEIGHTS).unlink()
    (tmp_path / "secret").write_bytes(b"x")
    (snapshot / WEIGHTS).symlink_to(tmp_path / "secret")
    with pytest.raises(LoadError, match="is a link that leads out"):
        open_folder(snapshot)
