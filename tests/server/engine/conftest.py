"""After every test of the engine its books are in order: no block lost, doubled, or in two hands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.engine.scheduler import Scheduler


@pytest.fixture(autouse=True)
def _every_scheduler_ends_in_order(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    made: list[Scheduler] = []
    prepare = Scheduler.__init__

    def __init__(self: Scheduler, *arguments: Any, **options: Any) -> None:
        prepare(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(Scheduler, "__init__", __init__)
    yield
    if "spoil" not in request.fixturenames:  # those tests are about books that are not
        for scheduler in made:
            scheduler.check_integrity()
