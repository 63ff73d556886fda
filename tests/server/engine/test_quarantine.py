"""Who is suspected of a worker's death, and who is condemned for it."""

from __future__ import annotations

from server.engine.quarantine import Quarantine


def test_after_one_death_nobody_is_held_back() -> None:
    quarantine = Quarantine()
    assert quarantine.died([4, 5, 6]) is None
    assert not any(sequence_id in quarantine for sequence_id in (4, 5, 6))
    assert quarantine.next_trial() is None


def serious(*step_ids: int) -> Quarantine:
    """Two deaths in a row in a step of these."""
    quarantine = Quarantine()
    for _ in range(2):
        assert quarantine.died(step_ids) is None
    return quarantine


def test_after_two_in_a_row_suspects_run_one_at_a_time_until_each_gave_a_token() -> None:
    quarantine = serious(4, 5, 6)
    assert quarantine.next_trial() == 4
    assert quarantine.next_trial() is None, "one at a time"
    quarantine.clear(4)
    assert 4 not in quarantine
    assert 5 in quarantine
    assert quarantine.next_trial() == 5
    quarantine.clear(6)  # its client has left
    quarantine.clear(5)
    assert quarantine.next_trial() is None


def test_a_token_in_between_makes_two_deaths_two_first_ones() -> None:
    quarantine = Quarantine()
    quarantine.died([1, 2])
    quarantine.clear(1)
    quarantine.clear(2)
    quarantine.died([1, 2])
    assert 1 not in quarantine
    assert quarantine.next_trial() is None


def test_who_is_on_trial_at_two_deaths_is_condemned() -> None:
    quarantine = serious(1, 2, 3)
    for condemned in (None, 1):
        assert quarantine.next_trial() == 1
        assert quarantine.died([1, 9]) == condemned
    assert 1 not in quarantine
    assert 9 in quarantine, "who ran beside it must be tried as well"
    assert quarantine.next_trial() in (2, 9)


def test_the_most_suspicious_is_tried_first() -> None:
    quarantine = Quarantine()
    for step in ([1, 2], [2], [2, 3]):
        quarantine.died(step)
    assert quarantine.next_trial() == 2


def test_a_death_while_nobody_computes_is_nobodys_fault() -> None:
    quarantine = serious(1)
    assert quarantine.next_trial() == 1
    for _ in range(5):
        assert quarantine.died([]) is None, "the worker died while it loaded"
        assert quarantine.next_trial() == 1


def test_an_innocent_on_trial_is_tried_again_without_the_one_that_ran_beside_it() -> None:
    quarantine = serious(1)
    assert quarantine.next_trial() == 1
    assert quarantine.died([1, 2]) is None
    assert 2 in quarantine
    assert quarantine.next_trial() == 1
    quarantine.clear(1)
    assert quarantine.next_trial() == 2
