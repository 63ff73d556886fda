"""The scheduler and its blocks, whatever is done to them and in whichever order: see harness.py."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.server.engine.harness import MIN_BLOCKS, Harness, draw_request


class EngineMachine(RuleBasedStateMachine):
    """Arrivals, steps, aborts and deaths, in engines of any size."""

    @initialize(
        num_blocks=st.integers(MIN_BLOCKS, MIN_BLOCKS + 40),
        max_num_seqs=st.integers(1, 6),
        num_more_tokens=st.integers(0, 40),
        max_drafts=st.sampled_from((0, 1, 4, 20)),
    )
    def begin(self, num_blocks: int, max_num_seqs: int, num_more_tokens: int, max_drafts: int) -> None:
        self.harness = Harness(num_blocks, max_num_seqs + num_more_tokens, max_num_seqs, max_drafts)

    @rule(pick=st.randoms(use_true_random=False))
    def add(self, pick: random.Random) -> None:
        self.harness.add(*draw_request(pick))

    @precondition(lambda self: self.harness.live)
    @rule(num_steps=st.integers(1, 20))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if self.harness.live:
                self.harness.step()

    @precondition(lambda self: self.harness.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.harness.abort(data.draw(st.sampled_from(sorted(self.harness.live))))

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.harness.die(data.draw(st.permutations(sorted(self.harness.live))))

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.finish()


@pytest.mark.no_cover
def test_nothing_is_lost_doubled_starved_or_changed() -> None:
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=60, stateful_step_count=30))


def test_a_thousand_random_steps_meet_everything() -> None:
    """Preemption, hits in the prefix cache, guesses, aborts and deaths: else the test above says little."""
    pick = random.Random(0)
    harness = Harness(MIN_BLOCKS + 10, 12, 6, max_drafts=4)
    while harness.counts["steps"] < 1000:
        if len(harness.live) < 12:
            harness.add(*draw_request(pick))
        if harness.counts["steps"] % 50 == 49:
            harness.abort(pick.choice(list(harness.live)))
        if harness.counts["steps"] % 200 == 199:
            harness.die(pick.sample(list(harness.live), len(harness.live)))
        harness.step()
    harness.finish()
    for event in ("preemptions", "cached", "accepted", "aborts", "deaths", "in order"):
        assert harness.counts[event] > 0, event
    assert harness.counts["accepted"] < harness.counts["drafted"], "no guess was wrong"
