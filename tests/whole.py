"""The whole server as its users have it: `verbatim serve` in a process of its own, on the embedded model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from server.settings import ENV_PREFIX

PROGRAM = "from server.cli import main; main()"

STORY: dict[str, Any] = {
    "inputs": "Once upon a time, a little rabbit",
    "parameters": {"max_new_tokens": 60, "temperature": 0.8, "seed": 7},
}


@dataclass
class Server:
    """A running server and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    start_s: float = 0.0  # from its command until it was ready
    http: httpx.Client = field(default_factory=httpx.Client)

    def lines(self) -> list[dict[str, Any]]:
        """The log so far, line by line."""
        whole, _, _ = self.log.read_text().rpartition("\n")  # the last line may still be under way
        return [json.loads(line) for line in whole.splitlines()]

    def front(self) -> psutil.Process:
        """The process that listens."""
        return psutil.Process(self.process.pid)

    def worker(self) -> psutil.Process | None:
        """The newest of its workers that is not a corpse, if there is one."""
        for child in reversed(self.front().children()):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "worker" in " ".join(child.cmdline()):  # a corpse has none
                    return child
        return None

    def signal_worker(self, number: int) -> psutil.Process | None:
        """The worker that was hit, if there is one."""
        if (worker := self.worker()) is not None:
            worker.send_signal(number)
        return worker

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(20)

    def metric(self, name: str) -> float:
        """The value of one series without labels."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def generate(self, body: dict[str, Any] = STORY, **parameters: Any) -> dict[str, Any]:
        """An answer without a stream, with its details."""
        wish = body | {"parameters": body["parameters"] | {"details": True} | parameters}
        response = self.http.post("/generate", json=wish)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def command(*arguments: str, program: str = PROGRAM) -> list[str]:
    """`verbatim …`, by this Python."""
    return [sys.executable, "-c", program, *arguments]


@contextlib.contextmanager
def running(*arguments: str, program: str = PROGRAM, **environment: str) -> Iterator[Server]:
    """`verbatim serve …` on a free port, ready. Settings in our own environment do not reach it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    began_s = time.monotonic()
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            command("serve", "--port", "0", *arguments, program=program),
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**inherited, **environment},
            cwd=Path(__file__).resolve().parents[1],
        )
        server = Server(process, Path(log.name))
        try:
            while not (ready := [line for line in server.lines() if line["message"] == "ready"]):
                assert process.poll() is None, server.lines()
                assert time.monotonic() < began_s + 40, server.lines()
                time.sleep(0.02)
            server.start_s = time.monotonic() - began_s
            server.url = ready[0]["address"]
            server.http = httpx.Client(base_url=server.url, timeout=30, trust_env=False)
            yield server
        finally:
            server.http.close()
            with contextlib.suppress(psutil.NoSuchProcess):  # its worker ends with it, unless it is stopped
                server.signal_worker(signal.SIGCONT)
            process.kill()
            process.wait()
