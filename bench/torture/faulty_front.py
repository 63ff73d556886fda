"""`verbatim serve` with the worker of faulty_worker.py, and a detokenizer that fails when it is asked to.

Run by `PROGRAM`; nothing else makes such a server. Knows nothing of the worker's module but its name, since
the front has no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final
from unittest import mock

from server import cli
from server.api import generation
from server.engine.worker_client import WorkerClient
from server.text.detokenizer import StreamText, TokenText

PROGRAM: Final = "from bench.torture.faulty_front import main; main()"
STOP_MARK: Final = "let the detokenizer fail after "  # a stop string: this, and a number of tokens


class FaultyText(StreamText):
    """Fails for a request whose first stop string says so."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str], *others: Any) -> None:
        super().__init__(tokenizer, prompt_ids, stop, *others)
        is_marked = bool(stop) and stop[0].startswith(STOP_MARK)
        self._num_until_fault = int(stop[0].removeprefix(STOP_MARK)) if is_marked else -1

    def push(self, token_id: int) -> list[TokenText]:
        """As the real one, until it is time."""
        if self._num_until_fault == 0:
            raise RuntimeError("a fault in the detokenizer, as asked for")
        self._num_until_fault -= 1
        return super().push(token_id)


def main() -> None:
    """The command."""
    started_with = functools.partialmethod(WorkerClient.__init__, worker_module="bench.torture.faulty_worker")
    with (
        mock.patch.object(WorkerClient, "__init__", started_with),
        mock.patch.object(generation, "StreamText", FaultyText),
    ):
        cli.main()
