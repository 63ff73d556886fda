"""Engine, scheduler and blocks on a fake model: nothing lost, doubled or starved, whatever arrives when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling.sampling_params import SamplingParams
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.request import GenerationRequest, Progress, Timings, TokenOutput
from server.engine.scheduler import Scheduler
from tests.server.engine.fake_model import BLOCK_SIZE, VOCAB_SIZE, FakeModel, continuation


def make_engine(
    num_blocks: int = 64, max_batch_tokens: int = 16, max_num_seqs: int = 4, max_drafts: int = 0
) -> Engine:
    blocks = BlockManager(num_blocks, BLOCK_SIZE)
    clock = iter(range(1_000_000))
    return Engine(
        FakeModel(num_blocks),
        Scheduler(blocks, max_batch_tokens, max_num_seqs, max_drafts),
        lambda: float(next(clock)),
    )


def request(prompt_ids: tuple[int, ...], max_new_tokens: int, **fields: object) -> GenerationRequest:
    return GenerationRequest(
        prompt_ids=prompt_ids,
        sampling=SamplingParams(),
        max_new_tokens=max_new_tokens,
        **fields,  # type: ignore[arg-type]
    )


def finish(engine: Engine) -> dict[int, list[TokenOutput]]:
    """Run until there is nothing left to do; integrity holds after every step."""
    outputs: dict[int, list[TokenOutput]] = defaultdict(list)
    while engine.has_work:
        for sequence_id, output in engine.step():
            outputs[sequence_id].append(output)
        engine.scheduler.check_integrity()
    return outputs


def ids_of(outputs: list[TokenOutput]) -> list[int | None]:
    return [output.token_id for output in outputs]


PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40).map(tuple)


@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 5), PROMPTS, st.integers(1, 30), st.integers(-2, 2), st.none() | st.integers(0, 20)
        ),
        max_size=12,
    ),
    num_blocks=st.integers(18, 40),  # the longest sequence needs 18: pressure from there on
    max_batch_tokens=st.integers(4, 64),
)
@settings(max_examples=300)
def test_every_sequence_gets_what_it_would_get_alone(
    arrivals: list[tuple[int, tuple[int, ...], int, int, int | None]], num_blocks: int, max_batch_tokens: int
) -> None:
    """Random arrivals, lengths, priorities, aborts, pools and budgets; preemption if blocks are short."""
    engine = make_engine(num_blocks, max_batch_tokens)
    model = engine.model
    assert isinstance(model, FakeModel)
    outputs: dict[int, list[TokenOutput]] = defaultdict(list)
    aborted: set[int] = set()
    waits = [wait for wait, *_ in arrivals]
    upcoming = list(enumerate(arrivals))
    step = 0
    while upcoming or engine.has_work:
        while upcoming and step >= sum(waits[: upcoming[0][0] + 1]):
            sequence_id, (_, prompt, max_new_tokens, priority, _) = upcoming.pop(0)
            engine.add(sequence_id, request(prompt, max_new_tokens, priority=priority))
        for sequence_id, (*_, abort_after) in enumerate(arrivals):
            if abort_after is not None and len(outputs[sequence_id]) == abort_after:
                engine.abort(sequence_id)
                aborted.add(sequence_id)
        if engine.has_work:
            for sequence_id, output in engine.step():
                outputs[sequence_id].append(output)
            assert model.steps[-1] <= max_batch_tokens
        engine.scheduler.check_integrity()
        step += 1
        assert step < 5000, "starved"
    for sequence_id, (_, prompt, max_new_tokens, _, _) in enumerate(arrivals):
        expected = continuation(prompt, max_new_tokens)
        actual = ids_of(outputs[sequence_id])
        assert actual == expected[: len(actual)]
        if sequence_id not in aborted:
            assert len(actual) == max_new_tokens
            assert [o.finish_reason for o in outputs[sequence_id]] == [None] * (max_new_tokens - 1) + [
                "length"
            ]
    assert engine.stats().num_free_blocks == num_blocks


def test_a_long_prompt_runs_in_chunks_among_the_decoding_ones() -> None:
    engine = make_engine(max_batch_tokens=8)
    engine.add(1, request((1, 2, 3), 20))
    engine.step()
    engine.add(2, request(tuple(range(40)), 2))
    news = [sorted(sequence_id for sequence_id, _ in engine.step()) for _ in range(6)]
    assert news == [[1]] * 5 + [[1, 2]], "40 tokens in chunks of 7, while the first goes on with each step"


def test_first_come_first_served_within_a_priority() -> None:
    engine = make_engine(max_num_seqs=1)
    for sequence_id, priority in ((1, 0), (2, 0), (3, 5), (4, 0)):
        engine.add(sequence_id, request((7,), 2, priority=priority))
    order = list(dict.fromkeys(sequence_id for _ in range(8) for sequence_id, _ in engine.step()))
    assert order == [3, 1, 2, 4]


def test_memory_pressure_preempts_the_last_in_rank() -> None:
    engine = make_engine(num_blocks=6)
    engine.add(1, request((1,) * 10, 14))
    engine.add(2, request((2,) * 6, 10))
    outputs = finish(engine)
    assert engine.stats().num_preemptions > 0
    assert ids_of(outputs[1]) == continuation((1,) * 10, 14)
    assert ids_of(outputs[2]) == continuation((2,) * 6, 10)


def test_what_was_computed_before_a_preemption_is_found_again() -> None:
    engine = make_engine(num_blocks=10)
    engine.add(1, request((1,) * 10, 4))
    engine.add(2, request((2,) * 13, 9))
    engine.step()
    second = engine.scheduler.sequences[2]
    while second.num_computed_tokens < 13:
        engine.step()
    assert engine.scheduler._preempt() is second
    assert second.num_computed_tokens == 0
    engine.scheduler.schedule()
    assert second.num_computed_tokens == 13 // BLOCK_SIZE * BLOCK_SIZE


def test_with_a_preemption_after_every_step_all_end_as_alone() -> None:
    engine = make_engine()
    prompts = {sequence_id: (sequence_id,) * (5 * sequence_id) for sequence_id in range(1, 7)}
    for sequence_id, prompt in prompts.items():
        engine.add(sequence_id, request(prompt, 12))
    outputs: dict[int, list[TokenOutput]] = defaultdict(list)
    while engine.has_work:
        for sequence_id, output in engine.step():
            outputs[sequence_id].append(output)
        if engine.scheduler.running:
            engine.scheduler._preempt()
        engine.scheduler.check_integrity()
    assert engine.stats().num_preemptions > 20
    for sequence_id, prompt in prompts.items():
        assert ids_of(outputs[sequence_id]) == continuation(prompt, 12)


def test_an_abort_frees_the_blocks_at_once() -> None:
    engine = make_engine(num_blocks=8)
    engine.add(1, request((1,) * 20, 5))
    engine.step()
    assert engine.stats().num_free_blocks < 8
    engine.abort(1)
    assert engine.stats().num_free_blocks == 8
    assert not engine.has_work


def test_aborting_what_is_unknown_or_waiting_is_harmless() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(1, request((1,), 3))
    engine.add(2, request((2,), 3))
    engine.step()
    engine.abort(2)
    engine.abort(99)
    assert set(finish(engine)) == {1}


def test_an_end_id_stops_and_is_the_last_token() -> None:
    tokens = continuation((5, 6), 10)
    engine = make_engine()
    engine.add(1, request((5, 6), 10, end_ids=(tokens[4],)))
    outputs = finish(engine)[1]
    expected = tokens[: tokens.index(tokens[4]) + 1]
    assert ids_of(outputs) == expected
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize("max_drafts", [0, 4])
def test_end_ids_are_forbidden_until_the_minimum_is_reached(max_drafts: int) -> None:
    """Also within a step that gives several tokens."""
    for minimum in range(41):
        engine = make_engine(max_drafts=max_drafts)
        engine.add(1, request((5,), 40, end_ids=(VOCAB_SIZE + 1,), min_new_tokens=minimum))
        model = engine.model
        assert isinstance(model, FakeModel)
        assert len(finish(engine)[1]) == 40
        assert model.forbidden_ids == [(VOCAB_SIZE + 1,)] * minimum + [()] * (40 - minimum)
        assert (engine.num_steps < 40) == (max_drafts > 0)


@pytest.mark.parametrize("num_blocks", [64, 6])
def test_prompt_logprobs_come_once_and_whole(num_blocks: int) -> None:
    """Also when a preemption in between makes the prompt be computed again."""
    engine = make_engine(num_blocks, max_batch_tokens=4)
    engine.add(1, request((9,) * 8, 12))
    prompt = tuple(range(10, 22))
    engine.add(2, request(prompt, 3, wants_prompt_logprobs=True))
    outputs = finish(engine)[2]
    assert outputs[0].prompt_logprobs == tuple(-float(token_id) for token_id in prompt[1:])
    assert all(output.prompt_logprobs == () for output in outputs[1:])


def test_a_failing_item_fails_alone() -> None:
    engine = make_engine()
    model = engine.model
    assert isinstance(model, FakeModel)
    model.fails_on = 33
    engine.add(1, request((1, 2), 5))
    engine.add(2, request((33,), 5))
    outputs = finish(engine)
    assert outputs[2] == [
        TokenOutput(token_id=None, finish_reason="error", error="the fake model does not like this token")
    ]
    expected = continuation((1, 2), 5)
    assert 33 not in expected
    assert ids_of(outputs[1]) == expected


def test_timings_add_up() -> None:
    """The clock of these tests ticks once at each look: twice a step."""
    engine = make_engine(max_num_seqs=1)
    engine.add(1, request((1,), 2))
    engine.add(2, request((2,), 3))
    outputs = finish(engine)
    first, last = outputs[2][0].timings, outputs[2][-1].timings
    assert first is not None
    assert last is not None
    assert first.queue_s == last.queue_s > 0
    assert first.prefill_s == last.prefill_s == 1.0
    assert (first.decode_s, last.decode_s) == (0.0, 4.0)


def test_the_budget_must_give_each_sequence_a_token() -> None:
    with pytest.raises(ValueError, match="max_batch_tokens is 3, must be at least max_num_seqs, 4"):
        make_engine(max_batch_tokens=3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.blocks._free.pop(), "blocks lost"),
        (lambda s: s.running[0].block_table.append(s.blocks._free[0]), "doubled"),
        (lambda s: s.running.pop(), "in two places or in none"),
    ],
)
def test_the_integrity_check_sees_a_fault(spoil: Callable[[Scheduler], object], message: str) -> None:
    engine = make_engine()
    engine.add(1, request((1, 2), 5))
    engine.step()
    engine.scheduler.check_integrity()
    spoil(engine.scheduler)
    with pytest.raises(AssertionError, match=message):
        engine.scheduler.check_integrity()


def test_the_fake_model_notices_a_wrong_block_table() -> None:
    """Else the tests above could not fail."""
    engine = make_engine()
    engine.add(1, request((1, 2, 3, 4, 5), 2))
    engine.step()
    engine.scheduler.running[0].block_table.reverse()
    [(_, output)] = engine.step()
    assert output.token_id != continuation((1, 2, 3, 4, 5), 2)[1]


def cached_tokens(outputs: list[TokenOutput]) -> int:
    timings = outputs[0].timings
    assert timings is not None
    return timings.cached_tokens


def test_a_prompt_is_computed_once() -> None:
    """Its full blocks, that is; and the last token always, since its logits are needed."""
    engine = make_engine()
    model = engine.model
    assert isinstance(model, FakeModel)
    prompt = tuple(range(16))
    expected = continuation(prompt, 3)
    for sequence_id, num_cached in ((1, 0), (2, 12)):
        model.steps.clear()
        engine.add(sequence_id, request(prompt, 3))
        outputs = finish(engine)[sequence_id]
        assert ids_of(outputs) == expected
        assert cached_tokens(outputs) == num_cached
        assert model.steps == [16 - num_cached, 1, 1]


def test_tenants_do_not_see_each_others_prompts() -> None:
    engine = make_engine()
    for sequence_id, tenant, num_cached in ((1, 0, 0), (2, 1, 0), (3, 0, 12), (4, 1, 12)):
        engine.add(sequence_id, request(tuple(range(16)), 1, tenant=tenant))
        assert cached_tokens(finish(engine)[sequence_id]) == num_cached


def test_choices_compute_their_prompt_once_and_share_its_blocks() -> None:
    engine = make_engine(max_batch_tokens=64)
    model = engine.model
    assert isinstance(model, FakeModel)
    prompt = tuple(range(18))
    for choice in range(4):
        engine.add(1 + choice, request(prompt, 3, choice=choice))
    outputs: dict[int, list[TokenOutput]] = defaultdict(list)
    for _ in range(2):
        for sequence_id, output in engine.step():
            outputs[sequence_id].append(output)
    assert model.steps == [18, 1 + 3 * 2], "the others compute what is beyond the prompt's full blocks"
    assert engine.stats().num_free_blocks == 64 - 4 - 4
    for sequence_id, others in finish(engine).items():
        outputs[sequence_id] += others
    for choice in range(4):
        assert ids_of(outputs[1 + choice]) == continuation(prompt, 3, choice)


def test_choices_do_not_wait_for_one_that_is_gone() -> None:
    engine = make_engine()
    for choice in range(3):
        engine.add(1 + choice, request((1, 2), 3, choice=choice))
    engine.abort(2)
    engine.abort(1)
    assert ids_of(finish(engine)[3]) == continuation((1, 2), 3, 2)


def test_keys_take_turns_within_a_priority() -> None:
    engine = make_engine(max_num_seqs=1)
    for sequence_id, tenant in ((1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 2)):
        engine.add(sequence_id, request((7,), 2, tenant=tenant))
    engine.add(7, request((7,), 2, tenant=0, priority=1))
    order = list(dict.fromkeys(sequence_id for _ in range(14) for sequence_id, _ in engine.step()))
    assert order == [7, 4, 6, 1, 5, 2, 3]


def test_a_larger_priority_takes_the_place_of_a_smaller_one() -> None:
    engine = make_engine(max_num_seqs=2)
    for sequence_id in (1, 2):
        engine.add(sequence_id, request((sequence_id,), 10))
    engine.step()
    engine.add(3, request((3,), 10, priority=1))
    assert sorted(sequence_id for sequence_id, _ in engine.step()) == [1, 3]
    outputs = finish(engine)
    assert len(outputs[2]) == 9, "it went on when a place was free"
    assert engine.stats().num_preemptions == 1


def test_each_running_sequence_has_a_token_in_every_step() -> None:
    """However long the prompts of those before it are; so has the first of the waiting ones."""
    engine = make_engine(num_blocks=200, max_batch_tokens=8, max_num_seqs=4)
    for sequence_id in (1, 2, 3):
        engine.add(sequence_id, request((sequence_id,) * 100, 5))
    engine.add(4, request((4,), 5))
    for num_running in (1, 2, 3, 4):
        news = engine.step()
        assert len(engine.scheduler.running) == num_running, "one more in each step"
    assert [sequence_id for sequence_id, _ in news] == [4]
    assert [sequence_id for sequence_id, _ in engine.step()] == [4]


def test_a_generation_goes_on_in_another_engine() -> None:
    expected = continuation((1, 2, 3), 10)
    progress = Progress(
        arrival_s=-5.0,
        token_ids=tuple(expected[:4]),
        timings=Timings(queue_s=1.0, prefill_s=2.0, decode_s=0.5, cached_tokens=4),
    )
    engine = make_engine()
    engine.add(9, request((1, 2, 3), 10, wants_prompt_logprobs=True), progress)
    outputs = finish(engine)[9]
    assert ids_of(outputs) == expected[4:]
    assert outputs[-1].finish_reason == "length"
    assert not any(output.prompt_logprobs for output in outputs), "they were told before"
    timings = outputs[0].timings
    assert timings is not None
    assert (timings.queue_s, timings.prefill_s, timings.cached_tokens) == (1.0, 2.0, 4)


def test_the_blocks_of_a_failed_sequence_are_not_found_again() -> None:
    engine = make_engine()
    model = engine.model
    assert isinstance(model, FakeModel)
    model.fails_on = 33
    engine.add(1, request((*range(8), 33), 5))
    engine.add(2, request(tuple(range(4)), 1))
    finish(engine)
    engine.add(3, request(tuple(range(12)), 1))
    assert cached_tokens(finish(engine)[3]) == 4, "what the other one computed, too"


def test_guesses_take_what_is_left_of_the_budget_and_no_more() -> None:
    """Two sequences run and a long prompt comes: it has all but their two tokens of the step."""
    pattern = tuple(range(5)) * 4
    engine = make_engine(max_batch_tokens=22, max_num_seqs=3, max_drafts=8)
    engine.add(1, request(pattern, 60))
    engine.add(2, request(pattern, 60, choice=0))
    while not engine.stats().num_accepted_tokens:
        engine.step()
    engine.add(3, request(tuple(range(40)), 1))
    before = engine.stats().num_draft_tokens
    engine.step()
    assert engine.stats().num_draft_tokens == before
    model = engine.model
    assert isinstance(model, FakeModel)
    assert model.steps[-1] == 22
    outputs = finish(engine)
    assert max(model.steps) <= 22
    assert engine.stats().num_draft_tokens > before
    assert ids_of(outputs[3]) == continuation(tuple(range(40)), 1)


def test_guesses_take_no_block_that_a_running_sequence_may_need() -> None:
    """Where one has a block more than its known tokens fill, there is one left for each that runs."""
    prompt = tuple(range(5)) * 2
    num_early = 0
    for num_blocks in range(10, 21):
        engine = make_engine(num_blocks, max_batch_tokens=64, max_num_seqs=2, max_drafts=16)
        for sequence_id in (1, 2):
            engine.add(sequence_id, request((sequence_id, *prompt), 29))
        while engine.has_work:
            running = engine.scheduler.running
            needed = {sequence.id: -(-sequence.num_tokens // BLOCK_SIZE) for sequence in running}
            engine.step()
            for sequence in running:
                if len(sequence.block_table) > needed.get(sequence.id, 99):
                    assert engine.stats().num_free_blocks >= len(running)
                    num_early += 1
    assert num_early > 0


def test_a_wrong_guess_is_not_found_in_the_prefix_cache() -> None:
    """What goes on from an answer finds what was chosen there, not what was guessed."""
    engine = make_engine(num_blocks=200, max_batch_tokens=64, max_drafts=8)
    pattern = tuple(range(5)) * 3
    answer = continuation(pattern, 40)
    engine.add(0, request(pattern, 40))
    finish(engine)
    stats = engine.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    for length in range(1, 41):
        longer = (*pattern, *answer[:length], 49)
        engine.add(length, request(longer, 2))
        outputs = finish(engine)[length]
        assert ids_of(outputs) == continuation(longer, 2)
        assert cached_tokens(outputs) >= (len(pattern) + length - 1) // BLOCK_SIZE * BLOCK_SIZE
