"""Watchdog: whether a worker has been silent for too long. Looks at two clocks; kills nobody itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LOOK_S: Final = 0.25  # from one look at the heartbeat to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a silent worker is waited for, and how many in a row may die before a token comes."""

    watchdog_s: float = 8.0
    max_deaths: int = 5
    first_pause_s: float = 0.5  # before the third worker; twice as long before each after that


class Watchdog:
    """Silence counts from the worker's last beat, and only since it may be expected to beat."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_s = self._expected_since_s = clock()

    def rest(self) -> None:
        """A worker without work may be silent."""
        self._looked_s = self._expected_since_s = self._clock()

    def is_overdue(self, last_beat_s: float, limit_s: float) -> bool:
        """Whether it should have beaten within the last `limit_s`. To be asked every `LOOK_S`."""
        now_s = self._clock()
        if now_s - self._looked_s > 2 * LOOK_S:  # we were held up ourselves, and so may the worker have been
            self._expected_since_s = now_s
        self._looked_s = now_s
        return now_s - max(last_beat_s, self._expected_since_s) > limit_s
