"""A process of ours that answers lines with lines, for work that a model's folder may make endless.

Decides how it starts, and that it is killed. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading


class Helper:
    """`python -m module`, that reads a line and writes one. One caller at a time."""

    def __init__(self, module: str, max_wall_s: float) -> None:
        """max_wall_s: past it the process counts as hung. It is not started yet."""
        self.process: subprocess.Popen[bytes] | None = None
        self._module = module
        self._max_wall_s = max_wall_s

    @property
    def is_alive(self) -> bool:
        """Whether it runs, as far as is known."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, in place of one that may still run."""
        self.end()
        self.process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on the terminal is the front's to handle
        )

    def exchange(self, line: bytes) -> bytes:
        """The answer's line; what there is of it if the process ends before, or is killed as hung."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(self._max_wall_s, process.kill)
        watchdog.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            watchdog.cancel()

    def end(self) -> int:
        """Kill the process if it lives; its status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(BrokenPipeError), process:  # which closes the pipes and waits
            process.kill()
        return process.returncode


def answer_lines_alone() -> None:
    """What a helper does first: it ends when its starter wants it to, or by the limit of its own time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # by which work that takes too long is ended
