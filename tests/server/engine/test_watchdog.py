"""The watchdog: what counts as silence, by a clock of the test's own and by real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from server.engine.watchdog import LOOK_S, Activity, Watchdog, activity_of

LIMIT_S = 8.0
BUSY, ASLEEP, STOPPED, ON_DISK = (
    psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP,
)  # fmt: skip


class World:
    """A worker in these states that gets this share of a processor, and a front that looks this often."""

    def __init__(self, *states: str, share: float = 0.0, look_s: float = LOOK_S) -> None:
        self.states, self.share, self.look_s = states, share, look_s
        self.now_s = self.cpu_s = 0.0
        self.watchdog = Watchdog(lambda: Activity(set(self.states), self.cpu_s), lambda: self.now_s)

    def found_after_s(self, limit_s: float, *, beat_s: float = 0.0) -> float | None:
        """When it is overdue, if within this time."""
        while self.now_s < limit_s:
            self.now_s += self.look_s
            self.cpu_s += self.look_s * self.share
            if self.watchdog.is_overdue(beat_s, LIMIT_S):
                return self.now_s
        return None


@pytest.mark.parametrize(
    "world", [World(ASLEEP), World(STOPPED), World(BUSY, ASLEEP, share=1.0), World(BUSY, share=4.0), World()]
)
def test_who_sleeps_is_stopped_or_computes_for_ever_is_found_in_time(world: World) -> None:
    found_s = world.found_after_s(60)
    assert found_s is not None
    assert LIMIT_S < found_s <= LIMIT_S + 3 * LOOK_S


@pytest.mark.parametrize(
    "world",
    [
        World(ON_DISK),
        World(ASLEEP, ON_DISK),
        World(BUSY, ON_DISK, share=1.0),
        World(BUSY, share=0.1),  # others have the processor
        World(STOPPED, look_s=10.0),  # the whole machine stands still: four looks in 40 s
    ],
)
def test_who_waits_for_the_disk_or_for_a_processor_is_not_hung(world: World) -> None:
    assert world.found_after_s(40) is None


def test_who_gets_little_of_a_processor_and_computes_for_ever_is_found_later() -> None:
    found_s = World(BUSY, share=0.25).found_after_s(100)
    assert found_s is not None
    assert 4 * LIMIT_S < found_s <= 4 * LIMIT_S + 6 * LOOK_S


def test_silence_counts_from_the_last_beat_and_from_the_last_rest() -> None:
    world = World(ASLEEP)
    assert world.found_after_s(7) is None
    assert world.found_after_s(14, beat_s=7.0) is None
    world.watchdog.rest()
    assert world.found_after_s(21, beat_s=7.0) is None
    assert world.found_after_s(23, beat_s=7.0) is not None


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", f"print(flush=True); {code}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


def until_state(pid: int, state: str) -> Activity:
    while state not in (activity := activity_of(pid)).states:
        time.sleep(0.01)
    return activity


def test_the_states_of_a_real_process_are_seen() -> None:
    with process("import time; time.sleep(60)") as child:
        assert until_state(child.pid, ASLEEP).states == {ASLEEP}
        child.send_signal(signal.SIGSTOP)
        assert until_state(child.pid, STOPPED).states == {STOPPED}
    assert activity_of(child.pid).states <= {psutil.STATUS_DEAD}


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux tells of threads one by one")
def test_a_thread_that_computes_is_seen_behind_one_that_sleeps() -> None:
    endless = "threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    code = f"import threading, time; {endless}; time.sleep(60)"
    with process(code) as child:
        before = until_state(child.pid, BUSY)
        while activity_of(child.pid).cpu_s == before.cpu_s:
            time.sleep(0.01)
