"""Weights come into the system's cache before anybody reads them; what is no file costs nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from pathlib import Path

import pytest

from server.engine.read_ahead import read_ahead
from tests.server.live import eventually

SIZE = 32 * 2**20


def cached_part(path: Path) -> float:
    """How much of a file is in the system's cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start  # else the map could not be closed
        assert not failed
        return sum(page & 1 for page in pages) / len(pages)


def write_uncached(path: Path) -> None:
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_part(path) > 0.1:
        pytest.skip("this file system keeps files in memory")


@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00002.safetensors"])
def test_weights_come_into_the_cache(tmp_path: Path, name: str) -> None:
    write_uncached(tmp_path / name)
    other = tmp_path / "other.safetensors"
    write_uncached(other)
    read_ahead(tmp_path)
    assert eventually(lambda: cached_part(tmp_path / name) > 0.95)
    assert cached_part(other) < 0.1


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model-1.safetensors")
    (tmp_path / "model-2.safetensors").mkdir()
    (tmp_path / "model-3.safetensors").symlink_to("nowhere")
    read_ahead(tmp_path)
    read_ahead(tmp_path / "nowhere")
    assert eventually(lambda: all(thread.name != "read-ahead" for thread in threading.enumerate()))
