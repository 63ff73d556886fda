"""The heartbeat: seen through shared memory by whoever holds the descriptor."""

from __future__ import annotations

import os
import time

from server.engine.heartbeat import Heartbeat


def test_a_beat_is_seen_on_the_other_side() -> None:
    ours = Heartbeat.create()
    theirs = Heartbeat(os.dup(ours.descriptor))
    assert ours.last_beat_s() == 0.0, "it never began"
    before_s = time.monotonic()
    theirs.beat()
    assert before_s <= ours.last_beat_s() <= time.monotonic()
    theirs.close()
    ours.close()
