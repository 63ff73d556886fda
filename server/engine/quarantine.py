"""Quarantine: which sequences may have killed the worker, and how that is found out. Knows ids alone.

Whoever was in the step that a worker died in is a suspect. Suspects run again one at a time, among those that
are not, until each has given a token: so one poisonous request cannot take its neighbours down with it. One
at whose trial a worker dies is tried once more, since a worker may be killed for reasons of its own; at the
second time it is condemned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_DEATHS_ON_TRIAL: Final = 2


class Quarantine:
    """The suspects, in the order of their trials."""

    def __init__(self) -> None:
        self._num_deaths: dict[int, int] = {}  # of each suspect, on its trial
        self._on_trial: int | None = None

    def __contains__(self, sequence_id: int) -> bool:
        """Whether the sequence must wait for its trial, or is on it."""
        return sequence_id in self._num_deaths

    def died(self, step_ids: Iterable[int]) -> int | None:
        """A worker died in the step of these sequences. The one that is condemned, if any."""
        tried, self._on_trial = self._on_trial, None
        condemned = None
        if tried is not None and tried in step_ids:
            self._num_deaths[tried] += 1
            if self._num_deaths[tried] >= MAX_DEATHS_ON_TRIAL:
                condemned = tried
                del self._num_deaths[tried]
        for sequence_id in step_ids:
            if sequence_id != condemned:
                self._num_deaths.setdefault(sequence_id, 0)
        return condemned

    def clear(self, sequence_id: int) -> None:
        """It gave a token, or has ended: no suspect any more."""
        self._num_deaths.pop(sequence_id, None)
        if self._on_trial == sequence_id:
            self._on_trial = None

    def next_trial(self) -> int | None:
        """Who may run now; None while a trial is on, or if nobody is left."""
        if self._on_trial is not None or not self._num_deaths:
            return None
        self._on_trial = next(iter(self._num_deaths))
        return self._on_trial
