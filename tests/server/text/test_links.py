"""Links in a model's folder: what the front opens obeys the same rule as what the loader opens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.folder import MAX_JSON_BYTES, LoadError, find_file
from server.generation_config import read_generation_defaults
from server.text.chat_template import find_templates
from server.text.links import MAX_FILE_BYTES, stay_inside
from server.text.tokenizer_config import read_tokenizer_config
from server.text.tokenizer_files import load_backend

EMBEDDED = Path(__file__).parents[3] / "weights"

READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "tokenizer": ("tokenizer.json", (EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"), load_backend),
    "vocabulary": ("vocab.json", "{}", load_backend),
    "ranks": ("qwen.tiktoken", "", load_backend),
    "tokenizer's configuration": ("tokenizer_config.json", "{}", read_tokenizer_config),
    "special tokens": ("special_tokens_map.json", "{}", read_tokenizer_config),
    "model's type": ("config.json", "{}", read_tokenizer_config),
    "template": ("chat_template.jinja", "", find_templates),
    "another template": ("additional_chat_templates/a.jinja", "", find_templates),
    "defaults": ("generation_config.json", "{}", read_generation_defaults),
}


@pytest.mark.parametrize(("name", "content", "read"), READERS.values(), ids=READERS)
def test_a_link_that_leads_out_is_refused(
    name: str, content: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "outside").write_text(content, encoding="utf-8")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{path.name}: .*is a link that leads out of the model's folder"):
        read(tmp_path / "model")


@pytest.mark.parametrize(("name", "content", "read"), READERS.values(), ids=READERS)
def test_a_file_that_is_too_long_is_refused_and_not_held(
    name: str, content: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 10**12)  # more than a machine has
    with pytest.raises(ValueError, match=rf"{path.name}: has 1000000000000 bytes, must be at most \d+$"):
        read(tmp_path)


def test_merges_and_sentencepiece_are_read_within_the_limit_too(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer.json"))
    for name, other in (("merges.txt", "vocab.json"), ("tokenizer.model", None)):
        if other is not None:
            (tmp_path / "model" / other).write_text("{}")
        (tmp_path / "model" / name).touch()
        os.truncate(tmp_path / "model" / name, 10**12)
        with pytest.raises(ValueError, match=rf"{name}.* has 1000000000000 bytes, must be at most"):
            load_backend(tmp_path / "model")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    os.mkfifo(tmp_path / "merges.txt")
    with pytest.raises(ValueError, match=r"merges\.txt is no regular file$"):
        load_backend(tmp_path)


def test_the_limit_is_the_loader_s() -> None:
    assert MAX_FILE_BYTES == MAX_JSON_BYTES


def test_a_hub_s_cache_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(EMBEDDED / "tokenizer.json", blobs / "0")
    (blobs / "1").write_text('{"temperature": 0.5}')
    (blobs / "2").write_text("hello")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0")
    (snapshot / "generation_config.json").symlink_to("../../blobs/1")
    (snapshot / "additional_chat_templates" / "a.jinja").symlink_to("../../../blobs/2")
    assert load_backend(snapshot)[0].get_vocab_size() > 0
    assert read_generation_defaults(snapshot).sampling == {"temperature": 0.5}
    assert find_templates(snapshot)["a"].text == "hello"


@pytest.mark.parametrize("target", ["beside", "../outside", "sub/inner", "../../blobs/0", "/"])
@pytest.mark.parametrize("place", ["plain/folder", "cache/snapshots/123"])
def test_the_front_and_the_loader_agree(target: str, place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "beside", folder.parent / "outside", folder / "sub" / "inner"):
        path.write_text("x")
    for blobs in (tmp_path / "cache" / "blobs", tmp_path / "blobs"):
        blobs.mkdir(parents=True)
        (blobs / "0").write_text("x")
    (folder / "a").symlink_to(target)
    try:
        found = find_file(folder, "a")
    except LoadError as error:
        with pytest.raises(ValueError, match=str(error).removeprefix("a: ")):
            stay_inside(folder / "a")
    else:
        assert stay_inside(folder / "a") == found
