"""The embedded model: its card says what it is; its recipe runs, resumes and ends in a folder that loads."""

from __future__ import annotations

import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from model.counting import count_parameters
from model.loader import load, open_folder

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def test_the_card_tells_what_is_in_the_folder() -> None:
    loaded = load(open_folder(WEIGHTS))
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    num_parameters = count_parameters(loaded.decoder)
    assert f"{num_parameters:,} in bfloat16, {2 * num_parameters / 1e6:.1f} MB" in card
    assert loaded.fingerprint in card
    assert loaded.end_token_ids == (0,)
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 40e6
    records = [json.loads(line) for line in (WEIGHTS / "training.jsonl").read_text().splitlines()]
    assert f"{records[-1]['step']:,} steps" in card
    assert card.count("**Seed ") == 10


def write_documents(path: Path, num_documents: int) -> None:
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "dklmnrst"]
    draw = random.Random(num_documents)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        for _ in range(num_documents):
            text = " ".join(draw.choices(words, k=400)).capitalize() + "."
            file.write(json.dumps({"text": text}) + "\n")


@pytest.mark.no_cover
@pytest.mark.timeout(180)
def test_the_recipe_runs_resumes_and_ends_in_a_folder_that_loads(tmp_path: Path) -> None:
    write_documents(tmp_path / "stories.train.jsonl.xz", 60)
    write_documents(tmp_path / "stories.valid.jsonl.xz", 2)
    out = tmp_path / "out"
    for steps in ("1", "2"):
        arguments = [
            "--data",
            str(tmp_path),
            "--out",
            str(out),
            "--steps",
            steps,
            "--batch",
            "1",
            "--device",
            "cpu",
        ]
        command = [sys.executable, str(WEIGHTS / "train.py"), *arguments]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "MPLBACKEND": "agg"})
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2], "the second run went on from the first"
    assert all(record["bits_per_byte"] > 0 for record in records)
    loaded = load(open_folder(out))
    assert loaded.decoder.config == load(open_folder(WEIGHTS)).decoder.config
    assert (out / "loss.png").stat().st_size > 0
