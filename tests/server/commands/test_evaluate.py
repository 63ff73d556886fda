"""`verbatim eval`: every token but the first is predicted once, and the sum is the model's own."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.kernels.library import open_library
from model.loader import load, open_folder
from server.commands.evaluate import windows
from server.text.tokenizer import Tokenizer
from tests.model.decoders import whole
from tests.model.folders import write_folder
from tests.whole import command


@given(st.data(), st.integers(2, 300))
def test_every_token_but_the_first_is_new_in_one_window(data: st.DataObject, num_tokens: int) -> None:
    size = data.draw(st.integers(2, num_tokens))
    step = data.draw(st.integers(1, size - 1))
    new: list[int] = []
    for begin, num_new in windows(num_tokens, size, step):
        end = min(begin + size, num_tokens)
        assert 0 < num_new < end - begin or begin == 0, "something must come before what is predicted"
        new.extend(range(end - num_new, end))
    assert new == list(range(1, num_tokens))


def run(*arguments: str) -> Any:
    ended = subprocess.run(command("eval", *arguments, "--json"), capture_output=True, text=True, check=True)
    (line,) = ended.stdout.splitlines()
    return json.loads(line)


def test_the_figures_are_those_of_the_model_itself(tmp_path: Path) -> None:
    """200 bytes in windows of 127, which go on by 60; each byte is a token of this folder's tokenizer."""
    folder, file = tmp_path / "tiny", tmp_path / "text.txt"
    write_folder(folder)
    text = "A bird sang, and the rain came. " * 6 + "The end."
    file.write_text(text)
    told = run(str(file), "--model-dir", str(folder), "--stride", "60", "--quantize", "int4")
    ids = Tokenizer(folder).encode(text)
    assert len(ids) == len(text) == 200
    for result, quantize in zip(told["results"], ("none", "int4"), strict=True):
        decoder = load(open_folder(folder, quantize=quantize)).decoder
        decoder.use(open_library("auto"))
        nats = 0.0
        for begin, num_new in windows(200, 127, 60):
            window = ids[begin : begin + 127]
            logprobs = torch.log_softmax(whole(decoder, window[:-1]).double(), -1)
            found = logprobs.gather(1, torch.tensor(window[1:]).unsqueeze(1)).flatten()
            nats -= math.fsum(found[len(found) - num_new :].tolist())
        assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / 199, rel=1e-9)
        assert result["nats_per_token"] == pytest.approx(nats / 199, rel=1e-9)
        assert (result["num_tokens"], result["num_bytes"]) == (199, 199)
        assert (result["window_tokens"], result["stride"]) == (127, 60)
    dense, packed = told["results"]
    assert (dense["quantization"], packed["quantization"]) == (None, "int4")
    assert packed["weight_bytes"] < dense["weight_bytes"]
    assert packed["bits_per_byte"] != dense["bits_per_byte"]


def test_a_table_for_a_reader(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Once upon a time, a little rabbit went into the wood.")
    shown = subprocess.run(command("eval", str(file)), capture_output=True, text=True, check=True).stdout
    for text in ("verbatim-storyteller: text.txt", "bits per byte", "bfloat16", "+0.0000"):
        assert text in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not valid UTF-8 at byte 0"),
        (b"", "has 0 tokens, must have at least 2"),
        (None, "No such file"),
    ],
)
def test_a_text_that_cannot_be_read_ends_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    ended = subprocess.run(command("eval", str(file)), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
