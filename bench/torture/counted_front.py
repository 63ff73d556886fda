"""`verbatim serve` with one series more: how many tasks its event loop has. Run by `PROGRAM`, for R19."""

from __future__ import annotations

import asyncio
from typing import Final
from unittest import mock

from server import cli
from server.metrics import Metrics

PROGRAM: Final = "from bench.torture.counted_front import main; main()"
TASKS: Final = "torture_tasks"


class CountedMetrics(Metrics):
    """As the server's, and asked for on its event loop."""

    def render(self) -> bytes:
        """The tasks come last."""
        return super().render() + f"{TASKS} {len(asyncio.all_tasks())}\n".encode()


def main() -> None:
    """The command."""
    with mock.patch("server.app.Metrics", CountedMetrics):
        cli.main()
