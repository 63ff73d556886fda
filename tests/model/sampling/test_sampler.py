"""Whole rows: what is chosen, what is reported, and that neighbours change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from msgspec import structs
from scipy import stats
from torch import Tensor

from model.interface import SampledToken, SampleRequest
from model.sampling.philox import uniform
from model.sampling.sampler import Sampler, SamplingError, digest, draw
from model.sampling.sampling_params import LogprobsMode, SamplingParams

SAMPLER = Sampler()
GREEDY = SamplingParams(temperature=0.0)
MIXED = (
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=1, top_n_tokens=5),
    SamplingParams(temperature=0.9, top_p=0.9, seed=2**64 - 1, logprobs_mode="raw", top_n_tokens=20),
    SamplingParams(temperature=1.3, top_k=40, top_p=0.95, seed=3),
    SamplingParams(typical_p=0.8, min_p=0.01, seed=4),
    SamplingParams(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, seed=5),
    replace(GREEDY, logit_bias=((3, 5.0), (9, -5.0)), top_n_tokens=3),
)


def wish(params: SamplingParams, num_tokens: int = 4, forbidden: tuple[int, ...] = ()) -> SampleRequest:
    return SampleRequest(
        params=params, token_ids=range(num_tokens), num_prompt_tokens=num_tokens // 2, forbidden_ids=forbidden
    )


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 4


def near(logprobs: list[float]) -> object:
    """PyTorch's, which adds in another order than NumPy."""
    return pytest.approx(logprobs, rel=1e-14)


def chosen(logits: Tensor, params: SamplingParams, forbidden: tuple[int, ...] = ()) -> SampledToken:
    return SAMPLER.sample_row(logits, wish(params, forbidden=forbidden))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("vocab_size", [67, 4096, 10_007])
@pytest.mark.parametrize("is_coarse", [False, True], ids=["float32", "bfloat16 ties"])
def test_row_alone_equals_row_in_a_batch_bit_for_bit(vocab_size: int, is_coarse: bool, device: str) -> None:
    """Floats are compared with ==, so every bit of every log-probability counts."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    logits = random_logits(32, vocab_size)
    logits = (logits.bfloat16().float() if is_coarse else logits).to(device)
    before = logits.clone()
    requests = [wish(MIXED[i % len(MIXED)], 4 + i) for i in range(32)]
    together = SAMPLER.sample(logits, requests)
    alone = [
        SAMPLER.sample(row.clone().unsqueeze(0), [request])[0]
        for row, request in zip(logits, requests, strict=True)
    ]
    turned = SAMPLER.sample(logits.flip(0), requests[::-1])[::-1]
    assert all(output.error is None for output in together)
    assert together == alone == turned
    assert torch.equal(logits, before)


@pytest.mark.parametrize("poison", [math.nan, math.inf, "only -inf"])
@pytest.mark.parametrize("params", MIXED)
def test_poisoned_row_fails_alone(params: SamplingParams, poison: float | str) -> None:
    logits = random_logits(3, 100)
    requests = [wish(params)] * 3
    healthy = SAMPLER.sample(logits, requests)
    if isinstance(poison, str):
        logits[1] = -math.inf
    else:
        logits[1, 57] = poison
    outputs = SAMPLER.sample(logits, requests)
    assert outputs[1].tokens == ()
    assert outputs[1].error
    assert (outputs[0], outputs[2]) == (healthy[0], healthy[2])


def test_minus_infinity_among_finite_logits_is_only_impossible() -> None:
    row = torch.full((50,), -math.inf)
    row[[7, 31]] = 1.0
    assert {chosen(row, SamplingParams(seed=seed)).token_id for seed in range(20)} == {7, 31}


def test_forbidding_every_id_is_an_error() -> None:
    with pytest.raises(SamplingError, match="forbidden"):
        chosen(random_logits(3), GREEDY, forbidden=(0, 1, 2))


@pytest.mark.parametrize("vocab_size", [7, 64, 4096, 150_000])
def test_greedy_ties_go_to_the_lowest_id(vocab_size: int) -> None:
    for first in (0, vocab_size // 3, vocab_size - 2):
        row = torch.zeros(vocab_size)
        row[[first, vocab_size - 1]] = 2.0
        assert chosen(row, GREEDY).token_id == first
    assert chosen(torch.zeros(vocab_size), GREEDY).token_id == 0


def test_greedy_heeds_bias_and_forbidden_ids_but_no_cut() -> None:
    row = torch.tensor([1.0, 2.0, 3.0, 0.0])
    params = replace(GREEDY, logit_bias=((0, 1.5),), top_k=1, top_p=0.1, top_n_tokens=4)
    token = chosen(row, params, forbidden=(2,))
    expected = torch.tensor([2.5, 2.0, -math.inf, 0.0], dtype=torch.float64).log_softmax(0)
    assert token.token_id == 0
    assert [i for i, _ in token.top] == [0, 1, 3]
    assert [logprob for _, logprob in token.top] == near(expected[[0, 1, 3]].tolist())
    assert token.logprob == token.top[0][1]


@pytest.mark.no_cover
def test_draws_follow_the_softmax() -> None:
    """Chi-square over 100,000 draws with a fixed seed: a right sampler fails for one seed in 10,000."""
    row = random_logits(40, seed=5).double() / 4
    row[3] = row[11]  # a tie
    expected = row.softmax(0).numpy() * 100_000
    drawn = [draw(row, uniform(1234, 0, position)) for position in range(100_000)]
    counts = np.bincount(drawn, minlength=40)
    assert expected.min() > 5, "the approximation by chi-square needs five expected of each"
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_draw_uses_seed_choice_and_the_index_of_the_new_token() -> None:
    row = random_logits(500)
    for seed, choice, length in ((0, 0, 1), (7, 0, 1), (7, 3, 1), (7, 3, 90), (2**64 - 1, 1, 2)):
        request = structs.replace(wish(SamplingParams(seed=seed), length), choice=choice)
        assert SAMPLER.sample_row(row, request).token_id == draw(row.double(), uniform(seed, choice, length))


def test_draw_is_the_inverse_of_the_cumulative_distribution_in_rank_order() -> None:
    row = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64).log()
    assert [draw(row, u) for u in (0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 1 - 2**-53)] == [
        1,
        1,
        3,
        3,
        0,
        0,
        2,
        2,
    ]


def test_raw_logprobs_are_of_the_softmax_before_the_chain() -> None:
    row = random_logits(200)
    params = SamplingParams(temperature=0.5, top_k=2, top_n_tokens=5, logprobs_mode="raw")
    token = chosen(row, params, forbidden=(int(row.argmax()),))
    logprobs = row.double().log_softmax(0)
    best = row.argsort(descending=True)[:5].tolist()
    assert [i for i, _ in token.top] == best
    assert [logprob for _, logprob in token.top] == near(logprobs[best].tolist())
    assert token.logprob == dict(token.top)[token.token_id]
    assert token.token_id in best[1:3]


def test_processed_logprobs_are_of_the_softmax_after_the_chain() -> None:
    row = torch.tensor([1.0, 3.0, 2.0, 3.0, -1.0])
    token = chosen(row, SamplingParams(temperature=0.5, top_k=3, top_n_tokens=5))
    logprobs = torch.tensor([6.0, 4.0, 6.0], dtype=torch.float64).log_softmax(0)
    assert [i for i, _ in token.top] == [1, 3, 2], "best first, ties by lowest id, and nothing that was cut"
    assert [logprob for _, logprob in token.top] == pytest.approx([logprobs[i].item() for i in (0, 2, 1)])
    assert token.logprob == dict(token.top)[token.token_id]


def test_logprobs_are_finite_at_the_ends_of_float32() -> None:
    row = torch.tensor([3e38, -3e38, 3e38, -math.inf])
    for params in (SamplingParams(temperature=1e-40), SamplingParams(temperature=100.0), GREEDY):
        for mode in ("raw", "processed"):
            token = chosen(row, replace(params, logprobs_mode=mode, top_n_tokens=2))
            assert token.logprob == pytest.approx(-math.log(2))
            assert token.top == ((0, token.logprob), (2, token.logprob))


@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0])
def test_the_least_repetition_penalty_leaves_the_best_of_what_was_seen(
    temperature: float, mode: LogprobsMode
) -> None:
    row = torch.tensor([9.0, 2.0, 3.0, 8.0, -1.0])
    params = SamplingParams(temperature=temperature, repetition_penalty=5e-324, top_n_tokens=2, seed=1)
    request = SampleRequest(
        params=replace(params, logprobs_mode=mode), token_ids=[1, 2, 4], num_prompt_tokens=3
    )
    token = Sampler().sample_row(row, request)
    assert token.token_id == 2
    assert all(math.isfinite(logprob) for logprob in (token.logprob, *dict(token.top).values()))


def test_digest_tells_rows_apart_and_not_copies() -> None:
    logits = random_logits(2, 64)
    other = logits[0].clone()
    other[0] = torch.nextafter(other[0], torch.tensor(math.inf))
    assert digest(logits[0]) == digest(logits[0].clone()) != digest(other)
    assert digest(torch.stack((logits[0], other), dim=1)[:, 0]) == digest(logits[0]), "layout is no matter"
    assert 0 <= digest(other) < 2**64


@pytest.mark.parametrize("params", MIXED)
def test_verified_drafts_are_what_one_row_after_another_gives(params: SamplingParams) -> None:
    """As many as are right, and one more; each row's penalties and draw see the drafts before it."""
    logits = random_logits(6, 30)
    request = wish(params)
    alone: list[SampledToken] = []
    for row in logits:
        known_ids = (*request.token_ids, *(token.token_id for token in alone))
        alone.append(SAMPLER.sample_row(row, structs.replace(request, token_ids=known_ids)))
    ids = [token.token_id for token in alone]
    for num_right in range(6):
        drafts = [*ids[:num_right], *((i + 1) % 30 for i in ids[num_right:5])]
        output = SAMPLER.verify(logits, request, drafts)
        assert output.error is None
        assert output.tokens == tuple(alone[: num_right + 1])


def test_a_row_that_fails_among_the_drafts_is_left_to_its_own_step() -> None:
    logits = random_logits(3, 30)
    first, second = int(logits[0].argmax()), int(logits[1].argmax())
    logits[1, 4] = math.nan
    output = SAMPLER.verify(logits, wish(GREEDY), [first, second])
    assert [token.token_id for token in output.tokens] == [first]
    assert output.error is None
    assert SAMPLER.verify(logits[1:], wish(GREEDY), [second]).error is not None


@pytest.mark.parametrize("vocab_size", [49_152, 151_936])
def test_no_bit_depends_on_the_number_of_threads(vocab_size: int) -> None:
    """So many ids are shared out among PyTorch's threads; a row's parts then begin elsewhere."""
    logits = random_logits(len(MIXED), vocab_size)
    requests = [wish(params) for params in MIXED]
    num_threads = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(SAMPLER.sample(logits, requests))
    finally:
        torch.set_num_threads(num_threads)
    assert all(output.error is None for output in results[0])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("is_coarse", [False, True], ids=["float32", "bfloat16 ties"])
@pytest.mark.parametrize("params", [*MIXED, SamplingParams(top_k=300, min_p=1e-4, top_n_tokens=9)])
def test_observer_is_shown_whole_rows_and_changes_nothing(params: SamplingParams, is_coarse: bool) -> None:
    """What is chosen quickly, of a few ids, is what the rows shown say."""
    logits = random_logits(5_000, seed=9) / 2
    logits = logits.bfloat16().float() if is_coarse else logits
    params = replace(params, logprobs_mode="processed", top_n_tokens=20)
    shown: list[Tensor] = []
    for length in range(1, 20):
        shown.clear()
        token = SAMPLER.sample_row(logits, wish(params, length), lambda _, row: shown.append(row))
        assert token == SAMPLER.sample_row(logits, wish(params, length))
        row = shown[-1] if shown else logits.double()
        logprobs = row.log_softmax(0)
        best = sorted((-logprob, i) for i, logprob in enumerate(logprobs.tolist()) if logprob > -math.inf)
        assert [i for i, _ in token.top] == [i for _, i in best[:20]]
        assert [-logprob for _, logprob in token.top] == pytest.approx([logprob for logprob, _ in best[:20]])
        if params.temperature:
            assert token.token_id == draw(row, uniform(params.seed, 0, length))
        else:
            assert token.token_id == best[0][1]


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_near_the_exact_ones(temperature: float, scale: float) -> None:
    """Within four units in the last place of float64, or of 1.0 where that is more, by 50 digits."""
    row = random_logits(3_000, seed=11) * scale
    token = chosen(row, SamplingParams(temperature=temperature, top_n_tokens=20))
    with localcontext(prec=50):
        logits = [Decimal(x) / Decimal(temperature or 1.0) for x in row.tolist()]
        log_sum = sum((x.exp() for x in logits), Decimal(0)).ln()
        for i, logprob in token.top:
            exact = logits[i] - log_sum
            assert abs(Decimal(logprob) - exact) <= 4 * Decimal(math.ulp(max(1.0, -logprob)))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_forbidding_every_id_is_an_error_at_every_temperature(temperature: float) -> None:
    with pytest.raises(SamplingError, match="forbidden"):
        chosen(random_logits(3), SamplingParams(temperature=temperature), forbidden=(0, 1, 2))
