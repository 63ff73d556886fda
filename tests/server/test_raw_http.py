"""Bytes that are nearly HTTP, in their hundreds: no crash, no 5xx, and the server answers afterwards."""

from __future__ import annotations

import asyncio

from server.errors import ERRORS
from tests.server.live import Live, eventually
from tests.server.raw_http import attack, cases


def test_bytes_that_are_nearly_http_end_in_a_documented_status_or_none(live: Live) -> None:
    num_cases = 800
    tally = asyncio.run(attack(live.address, cases(seed=1, num_cases=num_cases), 64, quiet_s=1.0))
    assert not tally.wrong
    assert tally.num_cases == num_cases
    assert tally.statuses.keys() <= {100, 200, *(error.status for error in ERRORS)}
    assert min(tally.statuses[status] for status in (200, 400, 404, 422)) > 0  # the cases reach all depths
    assert live.generate(max_new_tokens=3).status_code == 200
    assert eventually(lambda: not live.engine.live)
    assert eventually(lambda: live.series()["verbatim_open_connections"] <= 1)


def test_a_case_is_the_same_whenever_it_is_asked_for() -> None:
    assert list(cases(seed=7, num_cases=50)) == list(cases(seed=7, num_cases=60))[:50]
    assert list(cases(seed=7, num_cases=50)) != list(cases(seed=8, num_cases=50))
