"""What every test starts from: few threads, repeatable properties, and the way to shared data.

Imports neither torch nor the project, so that a test decides what it loads.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Read by torch and tokenizers when they are first imported, here and in each worker process: test
# models are so small that a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No deadline: on a shared machine it measures the neighbours.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that lies beside the checkout, not in it."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data beside the checkout")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Properties are not traced: over many examples tracing takes twice the time of the work itself."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(wrapper=True, trylast=True)  # within pytest-cov's own
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """What is marked is not traced, nor what it starts.

    In a process of pytest-xdist, pytest-cov's pause of its collector lets coverage resume another beneath.
    """
    if not item.get_closest_marker("no_cover"):
        return (yield)
    in_threads, here = threading.gettrace(), sys.gettrace()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        threading.settrace(None)  # of threads that begin
        sys.settrace(None)
        try:
            return (yield)
        finally:
            sys.settrace(here)
            threading.settrace(in_threads)
