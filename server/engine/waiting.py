"""WaitingQueue: which of the sequences that wait is next. Owns no blocks and knows no budget.

The highest priority first; within it the tenants take turns; within a tenant, first come, first served.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from operator import attrgetter

from server.engine.sequence import Sequence

_rank = attrgetter("rank")


class WaitingQueue:
    """The sequences that own no blocks, by tenant."""

    def __init__(self) -> None:
        self._queues: dict[int, list[Sequence]] = {}  # by rank, each; none is empty
        self._turns: dict[int, int] = {}  # of each tenant that ever waited: the turn that was its last
        self._num_turns = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for queue in self._queues.values() for sequence in queue)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence at its rank: one that was preempted comes before those that arrived after it."""
        queue = self._queues.setdefault(sequence.request.tenant, [])
        bisect.insort(queue, sequence, key=_rank)

    def first(self) -> Sequence | None:
        """The next one; it stays."""
        if not self._queues:
            return None
        return min((queue[0] for queue in self._queues.values()), key=self._order)

    def take(self, sequence: Sequence) -> None:
        """Let a sequence go to run: its tenant has had its turn."""
        self.remove(sequence)
        self._num_turns += 1
        self._turns[sequence.request.tenant] = self._num_turns

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence go."""
        tenant = sequence.request.tenant
        queue = self._queues[tenant]
        queue.pop(bisect.bisect_left(queue, sequence.rank, key=_rank))
        if not queue:
            del self._queues[tenant]

    def _order(self, sequence: Sequence) -> tuple[int, int, int]:
        priority, arrival = sequence.rank
        return priority, self._turns.get(sequence.request.tenant, 0), arrival
