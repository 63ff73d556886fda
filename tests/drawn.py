"""What a strategy of hypothesis gives, as a list: for who looks at many values at once. Decides no test."""

from __future__ import annotations

from typing import TypeVar

import hypothesis
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def drawn(strategy: SearchStrategy[T], count: int, seed: int = 0) -> list[T]:
    """So many values at most, the same for the same seed."""
    found: list[T] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def keep(value: T) -> None:
        found.append(value)

    keep()
    return found
