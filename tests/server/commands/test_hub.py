"""A model by its id: from the hub library's cache, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.commands import hub
from server.commands.shared import EMBEDDED_MODEL
from tests.whole import command

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """As the library lays it out: links in the snapshot, their files beside it."""
    root = tmp_path / "models--some-one--story"
    snapshot = root / "snapshots" / REVISION
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(REVISION)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(EMBEDDED_MODEL / name, root / "blobs" / f"blob-of-{name}")
        (snapshot / name).symlink_to(Path("..", "..", "blobs", f"blob-of-{name}"))
    return tmp_path


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_cached_model_is_found_by_its_id(cache: Path) -> None:
    result = run(cache, "plan", "some-one/story", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["model_id"] == "some-one/story"


def test_a_model_that_cannot_be_had_ends_in_one_line(cache: Path) -> None:
    result = run(cache, "plan", "some-one/else")
    assert result.returncode == 2
    assert result.stderr.startswith("verbatim: some-one/else: no such folder, and the hub does not give it: ")
    assert len(result.stderr.splitlines()) == 1


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.HubError, match=r"pip install 'verbatim-server\[hub\]'"):
        hub.fetch("some-one/story")


@pytest.mark.parametrize("name", ["story", "./story", "a/b/c", "/story", "-a/b", "a/../b", ""])
def test_a_path_is_no_id(name: str) -> None:
    assert not hub.is_model_id(name)


def test_only_a_folder_of_the_cache_has_an_id(tmp_path: Path) -> None:
    assert hub.id_of(tmp_path / "models--a--b--c" / "snapshots" / REVISION) == "a/b--c"
    assert hub.id_of(tmp_path / "snapshots" / REVISION) is None
