"""Engine: one step after another. The heart; everything around it decides only when it beats."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as List

from model.interface import Model
from server.engine.request import EngineStats, GenerationRequest, Progress, TokenOutput
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence


class Engine:
    """Runs sequences on a model. Single-threaded; nobody else may touch the model or the scheduler."""

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
        on_plan: Callable[[List[Sequence]], None] = lambda sequences: None,
    ) -> None:
        self.model = model
        self.scheduler = scheduler
        self.clock = clock
        self.on_plan = on_plan  # told who is in a step before it is computed
        self.num_steps = 0
        self.num_step_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.sequences)

    def add(self, sequence_id: int, request: GenerationRequest, progress: Progress | None = None) -> None:
        """Queue a generation, at its start or as far as it had come.

        Ids are the order of arrival; the choices of one prompt have ids in a row.
        """
        progress = progress or Progress(arrival_s=self.clock())
        self.scheduler.add(Sequence(sequence_id, request, progress))

    def abort(self, sequence_id: int) -> None:
        """Stop a generation; nothing more is said of it."""
        self.scheduler.abort(sequence_id)

    def step(self) -> list[tuple[int, TokenOutput]]:
        """Compute one step; the news of each sequence that has any."""
        began_s = self.clock()
        plan = self.scheduler.schedule()
        self.on_plan(plan.sequences)
        outputs = self.model.execute(plan.items)
        self.num_steps += 1
        self.num_step_tokens += sum(len(item.token_ids) for item in plan.items)
        return self.scheduler.update(plan, outputs, began_s, self.clock())

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.sequences) - len(self.scheduler.running),
            num_blocks=self.scheduler.blocks.num_blocks,
            num_free_blocks=self.scheduler.blocks.num_free_blocks,
            num_cached_blocks=self.scheduler.blocks.num_cached_blocks,
            num_steps=self.num_steps,
            num_step_tokens=self.num_step_tokens,
            num_preemptions=self.scheduler.num_preemptions,
            num_draft_tokens=self.scheduler.num_draft_tokens,
            num_accepted_tokens=self.scheduler.num_accepted_tokens,
        )
