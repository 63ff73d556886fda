"""A load on the engine, around a model without tensors: whose tokens are known."""

from __future__ import annotations

import pytest

from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.load import Load, run_load
from server.engine.scheduler import Scheduler
from tests.server.engine.fake_model import BLOCK_SIZE, FakeModel, continuation

PROMPTS = [[1, 2, 3, 4, 5], [6, 7], [1, 2, 3, 4, 9]]


def engine(model: FakeModel) -> Engine:
    blocks = BlockManager(model.info.num_blocks, BLOCK_SIZE)
    return Engine(model, Scheduler(blocks, max_batch_tokens=8, max_num_seqs=3))


def test_every_stream_gets_its_own_tokens_and_is_timed() -> None:
    run = run_load(engine(FakeModel(40)), Load(PROMPTS, 6), first_id=5)
    assert run.token_ids == [continuation(prompt, 6) for prompt in PROMPTS]
    assert all(0 < first_s < run.took_s for first_s in run.first_token_s)
    assert run.step_s is not None
    assert 0 < run.step_s < run.took_s


def test_with_one_token_there_is_no_step_of_all() -> None:
    run = run_load(engine(FakeModel(40)), Load(PROMPTS, 1), first_id=0)
    assert run.step_s is None
    assert max(run.first_token_s) == run.took_s


def test_a_stream_that_fails_ends_it() -> None:
    model = FakeModel(40)
    model.fails_on = 7
    with pytest.raises(RuntimeError, match="does not like this token"):
        run_load(engine(model), Load(PROMPTS, 2), first_id=0)
