"""The real worker, with fault points: what fails, and after which token, is written in a request's seed.

Run in place of `server.engine.worker` by faulty_front.py, and by nobody else: no server has these. A fault
that strikes once leaves a file behind, since the worker that follows remembers nothing.
"""

from __future__ import annotations

import enum
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

from torch import Tensor

from model.interface import SampleRequest, StepItem, StepOutput
from model.runner import ModelRunner
from model.sampling import sampler
from model.sampling.processors import Chain, build_chain
from server.engine import worker

ONCE_FOLDER: Final = "TORTURE_ONCE_FOLDER"  # environment: where a fault that has struck leaves its file

_MARK: Final = 0xFA017  # the upper 20 bits of a seed that asks for a fault
_ONCE: Final = 1 << 40


class Fault(enum.IntEnum):
    """What can be made to fail."""

    PROCESSOR = 1  # an exception in the chain of one row
    NAN = 2  # among the logits of one row
    FORWARD = 3  # an exception in the step of all
    HANG = 4  # a step that never ends
    ABORT = 5  # the process, from within


def seed_of(fault: Fault, after_tokens: int, number: int, *, is_once: bool = False) -> int:
    """The seed that asks for it. `number`, below 2^16, tells apart what strikes once."""
    return _MARK << 44 | (_ONCE if is_once else 0) | fault << 32 | number << 16 | after_tokens


def strikes(request: SampleRequest, fault: Fault) -> bool:
    """Whether this fault is due at this token."""
    seed = request.params.seed
    if seed >> 44 != _MARK or seed >> 32 & 0xFF != fault:
        return False
    if seed & 0xFFFF != len(request.token_ids) - request.num_prompt_tokens:
        return False
    return not seed & _ONCE or _is_first(seed)


def _is_first(seed: int) -> bool:
    try:
        Path(os.environ[ONCE_FOLDER], str(seed)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class FaultySampler(sampler.Sampler):
    """NaN in the rows that ask for it."""

    def sample(self, logits: Tensor, requests: Sequence[SampleRequest]) -> list[StepOutput]:
        """As the real one. logits: [num_rows, vocab_size]."""
        poisoned = [row for row, request in enumerate(requests) if strikes(request, Fault.NAN)]
        if poisoned:
            logits = logits.clone()
            logits[poisoned, 7] = float("nan")
        return super().sample(logits, requests)


class FaultyRunner(ModelRunner):
    """Fails whole steps."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sampler = FaultySampler()

    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        """As the real one, unless an item asks for something else."""
        for request in (item.sample for item in items if item.sample is not None):
            if strikes(request, Fault.FORWARD):
                raise RuntimeError("a fault in the forward pass, as asked for")
            if strikes(request, Fault.HANG):
                time.sleep(3600.0)
            if strikes(request, Fault.ABORT):
                os.abort()
        return super().execute(items)


def faulty_chain(request: SampleRequest) -> Chain:
    """The request's processors; an exception in place of them, if it asks for that."""
    if strikes(request, Fault.PROCESSOR):
        raise RuntimeError("a fault in a processor, as asked for")
    return build_chain(request)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what aborts here leaves no core
    with (
        mock.patch.object(worker, "ModelRunner", FaultyRunner),
        mock.patch.object(sampler, "build_chain", faulty_chain),
    ):
        worker.main()
