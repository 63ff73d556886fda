"""Watchdog: whether a worker has been silent too long, though it could have spoken. Kills nobody itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final

import psutil

LOOK_S: Final = 0.25  # from one look at the heartbeat to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a silent worker is waited for, and how many in a row may die before a token comes."""

    watchdog_s: float = 8.0
    max_deaths: int = 5
    first_pause_s: float = 0.5  # before the third worker; twice as long before each after that


@dataclass(frozen=True, slots=True)
class Activity:
    """What the system says of a process: the states of its threads, and the processor time they have had."""

    states: Set[str]
    cpu_s: float


class Watchdog:
    """Silence counts from the worker's last beat, and only since it may be expected to beat.

    It counts for as long as the worker could have beaten: not while a thread waits for the disk, in which no
    signal would reach it either; and while one wants a processor, only as far as it gets one. A worker that
    is stopped, or all of whose threads sleep, has no such excuse; nor has one that computes for ever.
    """

    def __init__(self, observe: Callable[[], Activity], clock: Callable[[], float] = time.monotonic) -> None:
        self._observe = observe
        self._clock = clock
        self._looked_s = clock()
        self._last_beat_s = 0.0
        self.silent_s = 0.0  # at the last look
        self._cpu_s: float | None = None  # at the last look, if it was silent then

    def rest(self) -> None:
        """A worker without work may be silent."""
        self._looked_s = self._clock()
        self.silent_s, self._cpu_s = 0.0, None

    def is_overdue(self, last_beat_s: float, limit_s: float) -> bool:
        """Whether it should have beaten within the last `limit_s`. To be asked every `LOOK_S`."""
        if last_beat_s != self._last_beat_s:
            self._last_beat_s = last_beat_s
            self.rest()
            return False
        now_s = self._clock()
        passed_s = min(now_s - self._looked_s, 2 * LOOK_S)  # more: we were held up, and so may it have been
        self._looked_s = now_s
        self.silent_s += self._inexcusable_s(passed_s)
        return self.silent_s > limit_s

    def _inexcusable_s(self, passed_s: float) -> float:
        now, before_s = self._observe(), self._cpu_s
        self._cpu_s = now.cpu_s
        if psutil.STATUS_DISK_SLEEP in now.states:
            return 0.0
        if psutil.STATUS_RUNNING in now.states:
            return 0.0 if before_s is None else min(passed_s, now.cpu_s - before_s)
        return passed_s


def activity_of(pid: int) -> Activity:
    """Of a process and, where the system tells of them one by one, of its threads."""
    try:
        process = psutil.Process(pid)
        thread_ids = [thread.id for thread in process.threads()] if psutil.LINUX else [pid]
        times = process.cpu_times()
        return Activity({_state_of(thread_id) for thread_id in thread_ids}, times.user + times.system)
    except psutil.Error:  # it has just ended
        return Activity(frozenset(), 0.0)


def _state_of(thread_id: int) -> str:
    try:
        return psutil.Process(thread_id).status()
    except psutil.Error:
        return psutil.STATUS_DEAD
