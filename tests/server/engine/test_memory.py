"""Freed memory goes back to the system, even where what lies above it is still in use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server.engine import memory

LEAVE_HOLES = """
import psutil
from server.engine.memory import give_back_memory

mine = psutil.Process()
held = [bytes(1000) for _ in range(100_000)]  # beyond Python's own pools: each is malloc's
held = held[::100]
before = mine.memory_info().rss
give_back_memory()
print(before - mine.memory_info().rss)
"""


def test_free_pages_between_used_ones_are_given_back() -> None:
    if memory._MALLOC_TRIM is None:
        pytest.skip("this C library has no malloc_trim")
    done = subprocess.run([sys.executable, "-c", LEAVE_HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000_000  # of 99 MB in holes


def test_without_glibc_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MALLOC_TRIM", None)
    memory.give_back_memory()
