"""Each row of the torture in its short form: the same faults and the same comparing, in seconds.

Times are not asserted here: `make torture` takes them, on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator

import pytest
import uvloop

from bench.torture import endurance, faults, injections, integrity, manners, overload
from bench.torture.arena import Arena, Finding, arena

Row = Callable[[Arena], Coroutine[None, None, Finding]]

ROWS: dict[str, Row] = {
    "R1": integrity.token_integrity,
    "R2": integrity.batch_independence,
    "R3": overload.overload,
    "R4": overload.steady,
    "R5": faults.termination,
    "R6": lambda place: faults.worker_killed(place, ("twice",)),
    "R7": lambda place: faults.worker_hung(place, watchdog_s=3.0),
    "R8": manners.vanishing,
    "R9": manners.slow_readers,
    "R10": manners.slow_senders,
    "R11": integrity.memory_pressure,
    "R12": injections.one_request_fails,
    "R13": lambda place: injections.whole_step_fails(place, ("forward",)),
    "R19": endurance.soak,
    "R21": lambda place: endurance.storm(place, 0.1),
}


@pytest.fixture(scope="module")
def place() -> Iterator[Arena]:
    """With one oracle for all rows, which is not traced either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        with arena(seed=0, scale=0.005, longest=24) as it:
            yield it


@pytest.mark.no_cover
@pytest.mark.timeout(180)  # they wait for deadlines, and for processes that start beside another test
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_row_holds(place: Arena, row: Row) -> None:
    finding = uvloop.run(row(place))
    assert not finding.misses, finding
    assert finding.num_checked > 0
