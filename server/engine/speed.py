"""Speed: how fast tokens come while there is work. Knows no streams."""

from __future__ import annotations

import time
from collections.abc import Callable


class Speed:
    """Tokens per second while there is work: pauses of over a second count as idle."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens_per_s = 0.0
        self._clock = clock
        self._last_s = clock()
        self._num_tokens = 0
        self._busy_s = 0.0

    def seconds_for(self, num_tokens: float) -> float:
        """How long so many tokens take; a second if nothing was measured yet."""
        return num_tokens / self.tokens_per_s if self.tokens_per_s else 1.0

    def count(self, num_tokens: int) -> None:
        """Some tokens arrived now."""
        now_s = self._clock()
        self._busy_s += min(now_s - self._last_s, 1.0)
        self._last_s = now_s
        self._num_tokens += num_tokens
        if self._busy_s >= 1.0:
            measured = self._num_tokens / self._busy_s
            self.tokens_per_s = (self.tokens_per_s + measured) / 2 if self.tokens_per_s else measured
            self._num_tokens, self._busy_s = 0, 0.0
