"""Guessed tokens, from the engine down to the tensors: fewer steps, and every answer the same bit for bit."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pytest

from model.kernels.library import NO_PATH
from model.runner import ModelRunner, RunnerOptions
from model.sampling.sampling_params import SamplingParams
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.request import GenerationRequest, Progress, TokenOutput
from server.engine.scheduler import Scheduler
from tests.model.folders import write_folder
from tests.model.kernels.paths import AVAILABLE

PROMPT = (7, 8, 9, 10, 11) * 3
GREEDY = SamplingParams(temperature=0.0, top_n_tokens=3)
# Of a random model's tokens few repeat; a bias towards some makes guesses right, and wrong.
FEW = tuple((token_id, 9.0) for token_id in PROMPT[:3])
CASES: dict[str, tuple[SamplingParams, dict[str, object]]] = {
    "greedy": (GREEDY, {}),
    "one token": (SamplingParams(temperature=0.0, logit_bias=((7, 60.0),)), {}),
    "drawn": (SamplingParams(seed=1, logit_bias=FEW, top_n_tokens=2), {}),
    "raw log-probabilities": (
        SamplingParams(seed=2, logit_bias=FEW, top_p=0.9, logprobs_mode="raw", top_n_tokens=5),
        {},
    ),
    "cuts": (SamplingParams(seed=3, temperature=1.2, logit_bias=FEW, top_k=5, min_p=0.01, typical_p=0.9), {}),
    "repetition": (
        SamplingParams(temperature=0.0, logit_bias=FEW, repetition_penalty=1.02, top_n_tokens=1),
        {},
    ),
    "frequency, presence": (
        SamplingParams(seed=4, logit_bias=FEW, frequency_penalty=0.2, presence_penalty=-0.5),
        {},
    ),
    "an end among the guesses": (SamplingParams(seed=5, logit_bias=FEW), {"end_ids": (PROMPT[2],)}),
    "a minimum": (SamplingParams(seed=6, logit_bias=FEW), {"end_ids": PROMPT[:2], "min_new_tokens": 20}),
    "prompt log-probabilities": (SamplingParams(seed=7, logit_bias=FEW), {"wants_prompt_logprobs": True}),
}
NUM_TOKENS = 36


@pytest.fixture(
    scope="module",
    params=[(dtype, path) for dtype in ("float32", "bfloat16") for path in (NO_PATH, *AVAILABLE[:1])],
    ids=" ".join,
)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder)
    dtype, path = request.param
    options = RunnerOptions(
        model_id="tiny", dtype=dtype, kernels=path, num_threads=1, max_num_seqs=20, speculative_tokens=6
    )
    return ModelRunner.load(folder, options)


class Answers:
    """All cases together, in one engine or, from `num_steps_each` to the next, in many."""

    def __init__(
        self, runner: ModelRunner, max_drafts: int, num_blocks: int = 200, num_steps_each: int = 10**6
    ) -> None:
        self.outputs: dict[int, list[TokenOutput]] = defaultdict(list)
        self.num_steps = self.num_draft_tokens = self.num_accepted_tokens = self.num_preemptions = 0
        requests = {
            sequence_id: GenerationRequest(
                prompt_ids=PROMPT,
                sampling=sampling,
                max_new_tokens=NUM_TOKENS,
                **fields,  # type: ignore[arg-type]
            )
            for sequence_id, (sampling, fields) in enumerate(CASES.values(), 1)
        }
        last = len(requests)  # of which there are two choices
        requests[last + 1] = msgspec.structs.replace(requests[last], choice=1, wants_prompt_logprobs=False)
        while requests:
            blocks = BlockManager(num_blocks, runner.info.block_size)
            engine = Engine(runner, Scheduler(blocks, 96, 20, max_drafts))
            for sequence_id, request in requests.items():
                ids = tuple(output.token_id for output in self.outputs[sequence_id])
                engine.add(sequence_id, request, Progress(arrival_s=0.0, token_ids=ids))  # type: ignore[arg-type]
            while engine.has_work and engine.num_steps < num_steps_each:
                for sequence_id, output in engine.step():
                    self.outputs[sequence_id].append(output)
                    if output.finish_reason is not None:
                        del requests[sequence_id]
                engine.scheduler.check_integrity()
            stats = engine.stats()
            self.num_steps += stats.num_steps
            self.num_draft_tokens += stats.num_draft_tokens
            self.num_accepted_tokens += stats.num_accepted_tokens
            self.num_preemptions += stats.num_preemptions

    def told(self) -> dict[int, list[tuple[object, ...]]]:
        """All but the times."""
        return {
            sequence_id: [
                (each.token_id, each.logprob, each.top, each.prompt_logprobs, each.finish_reason, each.error)
                for each in outputs
            ]
            for sequence_id, outputs in self.outputs.items()
        }


@pytest.fixture(scope="module")
def plain(runner: ModelRunner) -> Answers:
    return Answers(runner, 0)


def test_the_cases_say_something(plain: Answers) -> None:
    outputs = plain.outputs.values()
    assert not any(each[-1].error for each in outputs)
    assert {each[-1].finish_reason for each in outputs} == {"stop", "length"}
    assert any(each[-1].finish_reason == "stop" and len(each) > 5 for each in outputs)
    assert plain.num_draft_tokens == 0


@pytest.mark.parametrize("max_drafts", [1, 6])
def test_guesses_change_no_bit_and_save_steps(runner: ModelRunner, plain: Answers, max_drafts: int) -> None:
    guessed = Answers(runner, max_drafts)
    assert guessed.told() == plain.told()
    assert 0 < guessed.num_accepted_tokens < guessed.num_draft_tokens
    assert guessed.num_steps <= plain.num_steps


def test_nor_do_they_where_blocks_are_short(runner: ModelRunner, plain: Answers) -> None:
    guessed = Answers(runner, 6, num_blocks=8)
    assert guessed.told() == plain.told()
    assert guessed.num_preemptions > 0
    assert guessed.num_accepted_tokens > 0


def test_nor_where_the_worker_dies(runner: ModelRunner, plain: Answers) -> None:
    guessed = Answers(runner, 6, num_steps_each=7)
    again = guessed.told()
    assert again == plain.told()
    assert guessed.num_accepted_tokens > 0


def test_a_text_that_repeats_takes_a_fraction_of_the_steps(runner: ModelRunner) -> None:
    """The bias leaves no other choice than one token over and over."""
    steps = []
    for max_drafts in (0, 6):
        engine = Engine(runner, Scheduler(BlockManager(8, runner.info.block_size), 96, 4, max_drafts))
        sampling = SamplingParams(temperature=0.0, logit_bias=((9, 90.0),))
        request = GenerationRequest(prompt_ids=PROMPT, sampling=sampling, max_new_tokens=50)
        engine.add(1, request, Progress(arrival_s=0.0))
        num_told = 0
        while engine.has_work:
            num_told += len(engine.step())
        assert num_told == 50
        steps.append(engine.num_steps)
    assert steps[0] == 50
    assert steps[1] < 15
