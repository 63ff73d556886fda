"""Quarantine: which sequences may have killed the worker, and how that is found out. Knows ids alone.

Whoever was in the step that a worker died in is a suspect until it gives a token. After one death nobody is
held back: most are nobody's fault. If a suspect was there again, with no token in between, it is serious:
now suspects run one at a time, among those that are not, so that a poisonous request cannot take its
neighbours down with it. One at whose trial a worker dies is tried once more, since another that runs beside
it may be the cause, and is then a suspect itself; at the second time it is condemned.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

SERIOUS: Final = 2  # deaths in a row
MAX_DEATHS_ON_TRIAL: Final = 2


class Quarantine:
    """The suspects."""

    def __init__(self) -> None:
        self._num_deaths: dict[int, int] = {}  # of each suspect, in a row
        self._num_trials: dict[int, int] = {}  # of each suspect, that ended in a death
        self._on_trial: int | None = None
        self._is_serious = False

    def __contains__(self, sequence_id: int) -> bool:
        """Whether the sequence must wait for its trial, or is on it."""
        return self._is_serious and sequence_id in self._num_deaths

    def died(self, step_ids: Collection[int]) -> int | None:
        """A worker died in the step of these sequences. The one that is condemned, if any."""
        tried, self._on_trial = self._on_trial, None
        for sequence_id in step_ids:
            self._num_deaths[sequence_id] = self._num_deaths.get(sequence_id, 0) + 1
        self._is_serious |= any(self._num_deaths[each] >= SERIOUS for each in step_ids)
        if tried is None or tried not in step_ids:
            return None
        self._num_trials[tried] = self._num_trials.get(tried, 0) + 1
        if self._num_trials[tried] < MAX_DEATHS_ON_TRIAL:
            return None
        self.clear(tried)
        return tried

    def clear(self, sequence_id: int) -> None:
        """It gave a token, or has ended: no suspect any more."""
        self._num_deaths.pop(sequence_id, None)
        self._num_trials.pop(sequence_id, None)
        self._is_serious &= bool(self._num_deaths)
        if self._on_trial == sequence_id:
            self._on_trial = None

    def next_trial(self) -> int | None:
        """Who may run now, the most suspicious first; None while a trial is on, or if there is none to be."""
        if self._on_trial is None and self._is_serious:
            self._on_trial = max(self._num_deaths, key=lambda each: self._num_deaths[each])
            return self._on_trial
        return None
