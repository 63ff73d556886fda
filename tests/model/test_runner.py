"""The runner: ints in, ints out, over a real decoder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec
import pytest
import torch

from model.folder import LoadError
from model.interface import SampleRequest, StepItem
from model.runner import ModelRunner, RunnerOptions
from model.sampling.sampling_params import SamplingParams
from tests.model.decoders import whole
from tests.model.folders import write_folder

GREEDY = SamplingParams(temperature=0.0, top_n_tokens=3)
OPTIONS = RunnerOptions(model_id="tiny", num_threads=1, kv_cache_tokens=1000, max_num_seqs=4)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder)
    return ModelRunner.load(folder, OPTIONS, lambda done, total: None)


def item(ids: list[int], start: int = 0, params: SamplingParams | None = GREEDY, block: int = 0) -> StepItem:
    sample = None
    if params is not None:
        sample = SampleRequest(params=params, token_ids=ids, num_prompt_tokens=len(ids))
    return StepItem(
        token_ids=ids[start:], start=start, block_table=list(range(block, block + 8)), sample=sample
    )


def test_it_says_what_was_loaded(runner: ModelRunner) -> None:
    info = runner.info
    assert (info.model_id, info.model_type, info.dtype, info.device) == ("tiny", "verbatim", "float32", "cpu")
    assert info.num_blocks == 63, "1,000 tokens in blocks of 16, rounded up"
    assert info.memory.kv_bytes_per_token == 2 * 2 * 4 * 16 * 4, "heads of 8 are padded to 16"
    assert info.max_total_tokens == 128
    assert dataclasses.replace(info, num_blocks=2).max_total_tokens == 32
    assert info.end_token_ids == (0, 2)


def test_greedy_takes_the_best_and_reports_the_best_three(runner: ModelRunner) -> None:
    ids = [5, 9, 200, 31]
    [output] = runner.execute([item(ids)])
    logprobs = torch.log_softmax(whole(runner.decoder, ids)[-1].double(), 0)
    best = torch.topk(logprobs, 3)
    [token] = output.tokens
    assert token.token_id == best.indices[0]
    assert [token_id for token_id, _ in token.top] == best.indices.tolist()
    assert token.logprob == pytest.approx(best.values[0].item(), abs=1e-12)


def test_an_item_that_does_not_ask_gets_no_token(runner: ModelRunner) -> None:
    outputs = runner.execute(
        [item([1, 2], params=None), item([3], block=8), item([4, 5], params=None, block=16)]
    )
    assert [len(output.tokens) for output in outputs] == [0, 1, 0]


def test_target_logprobs_are_of_the_softmax_in_float64(runner: ModelRunner) -> None:
    """40 rows, so that they come from several parts; the last row has no target."""
    ids = [(7 * i) % 300 for i in range(40)]
    asked = msgspec.structs.replace(item(ids), target_ids=ids[1:])
    [output] = runner.execute([asked])
    logprobs = torch.log_softmax(whole(runner.decoder, ids).double(), -1)
    expected = [logprobs[row, target].item() for row, target in enumerate(ids[1:])]
    assert output.target_logprobs == pytest.approx(expected, rel=1e-14)  # whose sum is in another order
    assert len(output.tokens) == 1


def test_nan_in_one_row_fails_that_item_alone(runner: ModelRunner) -> None:
    [expected] = runner.execute([item([1, 2, 3])])
    runner.cache.keys[:, :, 9] = math.nan  # a key that the second sequence has in its past
    outputs = runner.execute(
        [item([1, 2, 3]), item(list(range(20)), start=19, block=9), item([1, 2, 3], block=24)]
    )
    assert outputs[0] == outputs[2] == expected
    assert outputs[1].tokens == ()
    assert outputs[1].error is not None
    assert "NaN" in outputs[1].error


def test_nan_under_a_prompt_s_log_probabilities_is_an_error_too(runner: ModelRunner) -> None:
    runner.cache.values[:, :, 9] = math.nan
    asked = msgspec.structs.replace(item(list(range(20)), start=19, params=None, block=9), target_ids=[20])
    [output] = runner.execute([asked])
    assert output.target_logprobs == ()
    assert output.error is not None
    assert "NaN" in output.error


def test_a_cache_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    options = dataclasses.replace(OPTIONS, kv_cache_tokens=10**15)
    with pytest.raises(LoadError, match=r"kv_cache_tokens is 1000000000000000, which takes [0-9,]+ bytes"):
        ModelRunner.load(tmp_path, options, lambda done, total: None)


def test_the_cache_holds_all_sequences_at_full_length_by_default(tmp_path: Path) -> None:
    write_folder(tmp_path)
    options = dataclasses.replace(OPTIONS, kv_cache_tokens=0)
    runner = ModelRunner.load(tmp_path, options, lambda done, total: None)
    assert runner.info.num_blocks * runner.info.block_size == 4 * 128


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(LoadError, match="device is 'cuda', but this machine"):
        ModelRunner.load(tmp_path, dataclasses.replace(OPTIONS, device="cuda"), lambda done, total: None)
