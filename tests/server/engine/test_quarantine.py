"""Who is suspected of a worker's death, and who is condemned for it."""

from __future__ import annotations

from server.engine.quarantine import Quarantine
from server.engine.watchdog import LOOK_S, Watchdog


def test_suspects_run_one_at_a_time_until_each_gave_a_token() -> None:
    quarantine = Quarantine()
    assert quarantine.died([4, 5, 6]) is None
    assert quarantine.next_trial() == 4
    assert quarantine.next_trial() is None, "one at a time"
    quarantine.clear(4)
    assert 4 not in quarantine
    assert 5 in quarantine
    assert quarantine.next_trial() == 5
    quarantine.clear(6)  # its client has left
    quarantine.clear(5)
    assert quarantine.next_trial() is None


def test_who_is_on_trial_at_two_deaths_is_condemned() -> None:
    quarantine = Quarantine()
    quarantine.died([1, 2, 3])
    for condemned in (None, 1):
        assert quarantine.next_trial() == 1
        assert quarantine.died([1, 9]) == condemned
    assert 1 not in quarantine
    assert quarantine.next_trial() == 2
    quarantine.clear(2)
    assert quarantine.next_trial() == 3


def test_a_death_while_nobody_computes_is_nobodys_fault() -> None:
    quarantine = Quarantine()
    quarantine.died([1])
    assert quarantine.next_trial() == 1
    for _ in range(5):
        assert quarantine.died([]) is None, "the worker died while it loaded"
        assert quarantine.next_trial() == 1


def test_a_death_beside_the_trial_makes_new_suspects() -> None:
    quarantine = Quarantine()
    quarantine.died([1])
    assert quarantine.next_trial() == 1
    assert quarantine.died([1, 2]) is None
    assert quarantine.next_trial() == 1
    quarantine.clear(1)
    assert quarantine.next_trial() == 2


def test_silence_counts_since_the_last_beat_and_since_work() -> None:
    now_s = 100.0
    watchdog = Watchdog(lambda: now_s)

    def wait(duration_s: float) -> None:
        nonlocal now_s
        for _ in range(round(duration_s / LOOK_S)):
            now_s += LOOK_S
            assert not watchdog.is_overdue(last_beat_s, 8.0)

    last_beat_s = 0.0
    wait(8)
    now_s += LOOK_S
    assert watchdog.is_overdue(last_beat_s, 8.0)
    last_beat_s = now_s
    wait(8)
    watchdog.rest()
    wait(8)
    now_s += 60.0
    assert not watchdog.is_overdue(last_beat_s, 8.0), "the one who looks was held up as well"
    wait(8)
