"""A worker that some prompts do harm to: run in place of server/engine/worker.py, by tests alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from model.interface import StepItem, StepOutput
from model.runner import ModelRunner
from server.engine import worker

POISON = 17


class FaultyRunner(ModelRunner):
    """Ends its process in the step that reaches a poisonous token."""

    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        if any(POISON in item.token_ids[:1] and item.start == 0 for item in items):
            os.abort()
        return super().execute(items)


if __name__ == "__main__":
    worker.ModelRunner = FaultyRunner  # type: ignore[attr-defined]
    worker.main()
