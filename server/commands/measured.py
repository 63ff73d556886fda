"""The two processes that `verbatim bench` measures: an engine without a server, and a server.

Decides how they are started and ended; measures neither.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import psutil

from model.interface import ModelInfo, Roof
from server.commands.shared import ENGINE_SETTINGS
from server.engine.frames import Ready, Refused, WorkerConfig
from server.engine.load import Load, Question, RoofQuestion, Run
from server.engine.worker_process import SPINNING
from server.settings import Settings

T = TypeVar("T")

LOOK_S = 0.01  # how exactly the time of a start is known
PROGRAM = "from server.cli import main; main()"


class Inside:
    """An engine in a process of its own that does what it is told, and times it."""

    def __init__(self, process: subprocess.Popen[bytes], config: WorkerConfig) -> None:
        """Raises `RuntimeError` with why it cannot be."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._questions: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout
        first: Ready | Refused = self._ask(config, Ready | Refused)  # type: ignore[arg-type]  # a union
        if isinstance(first, Refused):
            raise RuntimeError(first.reason)
        self.info: ModelInfo = first.info

    def run(self, load: Load) -> Run:
        """Do it; what became of it."""
        return self._ask(load, Run)

    def roof(self) -> Roof:
        """What the machine gives now."""
        return self._ask(RoofQuestion(), Roof)

    def _ask(self, question: WorkerConfig | Question, answer: type[T]) -> T:
        self._questions.write(msgspec.json.encode(question) + b"\n")
        self._questions.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the process that measures ended: what it said is above")
        return msgspec.json.decode(line, type=answer)


@contextlib.contextmanager
def inside(config: WorkerConfig) -> Iterator[Inside]:
    """Loaded, and ended afterwards. Its threads wait as the worker's do."""
    process = subprocess.Popen(
        [*SPINNING, sys.executable, "-m", "server.engine.measurer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C on the terminal is ours to handle
    )
    with process:
        try:
            yield Inside(process, config)
        finally:
            process.kill()  # it may be in the middle of a load that nobody waits for


class Served(msgspec.Struct, frozen=True):
    """A server that is ready."""

    address: str
    start_s: float  # from its command until then
    pid: int

    def resident_bytes(self) -> tuple[int, int]:
        """What the front holds, and its worker."""
        front = psutil.Process(self.pid)
        worker = next(child for child in front.children() if "server.engine.worker" in child.cmdline())
        return front.memory_info().rss, worker.memory_info().rss


def engine_flags(settings: Settings) -> list[str]:
    """The engine's settings, as flags; what a file said is in them."""
    return [
        text
        for name in ENGINE_SETTINGS
        if name != "config"
        for text in (f"--{name.replace('_', '-')}", str(getattr(settings, name)))
    ]


@contextlib.contextmanager
def serving(model_dir: str, settings: Settings) -> Iterator[Served]:
    """`verbatim serve` on a free port of this machine, with the engine's settings. Raises `RuntimeError`."""
    fixed = ["--host", "127.0.0.1", "--port", "0", "--log-format", "json", "--log-level", "info"]
    with tempfile.NamedTemporaryFile() as log:
        began_s = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "serve", model_dir, *fixed, *engine_flags(settings)],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            address = _address(process, Path(log.name))
            yield Served(address, time.monotonic() - began_s, process.pid)
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it serves, once its log says so."""
    while True:
        ended = process.poll() is not None
        text = log.read_bytes()
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            if b'"ready"' in line:
                return str(msgspec.json.decode(line)["address"])
        if ended:
            raise RuntimeError(f"the server ended: {text.decode(errors='replace')[-500:]}")
        time.sleep(LOOK_S)
