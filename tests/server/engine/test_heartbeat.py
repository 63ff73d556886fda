"""The heartbeat: seen through shared memory by whoever holds the descriptor."""

from __future__ import annotations

import os
import time

from server.engine.heartbeat import Heartbeat


def test_a_beat_and_a_step_are_seen_by_the_other_side() -> None:
    ours = Heartbeat.create(3)
    theirs = Heartbeat(os.dup(ours.descriptor))
    assert (ours.last_beat_s(), ours.step_ids()) == (0.0, [])
    before_s = time.monotonic()
    theirs.beat()
    first_s = ours.last_beat_s()
    assert before_s <= first_s <= time.monotonic()
    theirs.begin_step([7, 2**40, 9])
    assert ours.step_ids() == [7, 2**40, 9]
    assert ours.last_beat_s() > first_s, "a step begins with a beat"
    theirs.begin_step([8])
    assert ours.step_ids() == [8]
    theirs.end_step()
    assert ours.step_ids() == []
    for side in (theirs, ours, ours):
        side.close()
