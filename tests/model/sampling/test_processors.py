"""Each processor against the same rule in plain Python floats, ties included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.interface import SampleRequest
from model.sampling.processors import (
    FrequencyPenalty,
    LogitsProcessor,
    MinP,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    build_chain,
)
from model.sampling.sampling_params import SamplingParams

Row = list[float]

# Half-precision values and small integers: the second make many ties. At least one is finite.
LOGITS = st.one_of(
    st.lists(st.floats(-30, 30, width=16), min_size=1, max_size=40),
    st.lists(st.integers(-3, 3).map(float) | st.just(-math.inf), min_size=1, max_size=40),
).filter(lambda row: max(row) > -math.inf)
PORTION = st.floats(0.01, 0.99)
INF = math.inf

EVERYTHING = SamplingParams(
    temperature=0.7, top_k=5, top_p=0.9, min_p=0.05, typical_p=0.95, repetition_penalty=1.2,
    frequency_penalty=0.5, presence_penalty=0.25, logit_bias=((1, 2.0),),
)  # fmt: skip


def wish(
    params: SamplingParams,
    token_ids: Sequence[int] = (),
    num_prompt_tokens: int = 0,
    forbidden: Sequence[int] = (),
) -> SampleRequest:
    return SampleRequest(
        params=params, token_ids=token_ids, num_prompt_tokens=num_prompt_tokens, forbidden_ids=forbidden
    )


def run(processor: LogitsProcessor, row: Row) -> Row:
    given_row = torch.tensor(row, dtype=torch.float64)
    result: Row = processor(given_row).tolist()
    assert given_row.tolist() == row, "the row given must stay as it is"
    return result


def keep(row: Row, kept: Sequence[int]) -> Row:
    return [value if i in kept else -INF for i, value in enumerate(row)]


def softmax(row: Row) -> Row:
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def shortest(order: Sequence[int], probs: Row, p: float) -> list[int]:
    """The shortest prefix of `order` of at least `p`; gives up on examples that rounding would decide."""
    sums = [math.fsum(probs[i] for i in order[:length]) for length in range(1, len(order) + 1)]
    assume(all(abs(total - p) > 1e-9 for total in sums))
    return list(order[: next(length for length, total in enumerate(sums, 1) if total > p)])


@settings(deadline=None)
@given(LOGITS, st.floats(0.01, 100.0))
def test_temperature_divides_the_distance_from_the_best(row: Row, temperature: float) -> None:
    expected = [(value - max(row)) / temperature for value in row]
    assert run(Temperature(temperature), row) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40])
def test_smallest_temperatures_leave_the_best_and_its_ties(temperature: float) -> None:
    row = run(Temperature(temperature), [3e38, -3e38, 3e38])
    assert torch.tensor(row).softmax(0).tolist() == [0.5, 0.0, 0.5]


@settings(deadline=None)
@given(LOGITS, st.integers(1, 2**40) | st.integers(1, 40))
def test_top_k_keeps_k_and_of_the_tied_the_lowest_ids(row: Row, k: int) -> None:
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    assert run(TopK(k), row) == keep(row, order[:k])


@settings(deadline=None)
@given(LOGITS, PORTION)
def test_top_p_keeps_the_shortest_prefix_of_rank_order(row: Row, p: float) -> None:
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    assert run(TopP(p), row) == keep(row, shortest(order, softmax(row), p))


def test_top_p_met_exactly_by_ties_keeps_no_more() -> None:
    assert run(TopP(0.5), [1.0, 1.0, 1.0, 1.0]) == [1.0, 1.0, -INF, -INF]


@settings(deadline=None)
@given(LOGITS, PORTION)
def test_min_p_keeps_what_is_near_enough_to_the_best(row: Row, min_p: float) -> None:
    probs = softmax(row)
    assume(all(abs(prob / max(probs) - min_p) > 1e-9 for prob in probs))
    assert run(MinP(min_p), row) == keep(row, [i for i in range(len(row)) if probs[i] >= min_p * max(probs)])


def test_min_p_of_one_keeps_the_best_and_its_ties() -> None:
    assert run(MinP(1.0), [0.3, 0.1, 0.3]) == [0.3, -INF, 0.3]


@settings(deadline=None)
@given(LOGITS, PORTION)
def test_typical_p_keeps_the_nearest_to_the_entropy(row: Row, p: float) -> None:
    probs = softmax(row)
    surprise = [max(row) - value + math.log(math.fsum(math.exp(x - max(row)) for x in row)) for value in row]
    entropy = math.fsum(prob * s for prob, s in zip(probs, surprise, strict=True) if prob > 0.0)
    distance = [abs(s - entropy) for s in surprise]
    levels = sorted({d for d in distance if d < INF})
    assume(all(high - low > 1e-9 for low, high in pairwise(levels)))
    order = sorted(range(len(row)), key=lambda i: (distance[i], i))
    assert run(TypicalP(p), row) == keep(row, shortest(order, probs, p))


def test_typical_p_may_cut_the_most_probable() -> None:
    """Probabilities 0.4 and six of 0.1: the entropy, 1.75 nats, is nearer to -ln 0.1 than to -ln 0.4."""
    row = [math.log(0.4)] + [math.log(0.1)] * 6
    assert run(TypicalP(0.25), row) == keep(row, [1, 2, 3])


@settings(deadline=None)
@given(LOGITS, st.floats(0.1, 10.0), st.lists(st.integers(0, 39), max_size=60))
def test_repetition_penalty_moves_each_token_seen_down_once(
    row: Row, penalty: float, seen: list[int]
) -> None:
    seen = [i % len(row) for i in seen]
    expected = [
        value if i not in seen else value / penalty if value > 0 else value * penalty
        for i, value in enumerate(row)
    ]
    assert run(RepetitionPenalty(penalty, seen), row) == expected


@settings(deadline=None)
@given(
    LOGITS,
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.lists(st.integers(0, 39), max_size=60),
    st.integers(0, 60),
)
def test_frequency_and_presence_count_the_output_alone(
    row: Row, frequency: float, presence: float, token_ids: list[int], num_prompt_tokens: int
) -> None:
    token_ids = [i % len(row) for i in token_ids]
    output = token_ids[num_prompt_tokens:]
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
    expected = [value - output.count(i) * frequency - (i in output) * presence for i, value in enumerate(row)]
    chain = build_chain(wish(params, token_ids, num_prompt_tokens))
    assert run(chain, row) == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_repetition_counts_the_prompt_too() -> None:
    chain = build_chain(wish(SamplingParams(repetition_penalty=2.0), [0, 1], num_prompt_tokens=2))
    assert run(chain, [4.0, -4.0, 4.0]) == [2.0, -8.0, 4.0]


def test_bias_is_added_and_forbidden_ids_win_over_it() -> None:
    chain = build_chain(wish(SamplingParams(logit_bias=((0, -1.5), (2, 100.0))), forbidden=[2, 3]))
    assert run(chain, [1.0, 2.0, 3.0, 4.0]) == [-0.5, 2.0, -INF, -INF]


def test_order_of_the_chain() -> None:
    chain = build_chain(wish(EVERYTHING, [1], forbidden=[0]))
    assert [type(processor).__name__ for processor in chain.processors] == [
        "LogitBias", "ForbiddenIds", "RepetitionPenalty", "FrequencyPenalty", "PresencePenalty",
        "Temperature", "TopK", "TopP", "MinP", "TypicalP",
    ]  # fmt: skip


def test_neutral_parameters_build_an_empty_chain() -> None:
    assert build_chain(wish(SamplingParams(), [1, 2, 3], 1)).processors == ()


def test_greedy_builds_no_more_than_the_penalties() -> None:
    chain = build_chain(wish(replace(EVERYTHING, temperature=0.0), [1], forbidden=[0]))
    assert type(chain.processors[-1]).__name__ == "PresencePenalty"


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_each_parameter_alone_builds_its_one_processor(name: str) -> None:
    """Also says which parameters are no business of the chain."""
    only: dict[str, Any] = {name: getattr(EVERYTHING, name)}
    expected = 0 if name in {"seed", "top_n_tokens", "logprobs_mode"} else 1
    assert len(build_chain(wish(SamplingParams(**only))).processors) == expected


def test_observer_sees_each_stage_and_changes_nothing() -> None:
    request = wish(EVERYTHING, [1, 2, 2], 1, forbidden=[0])
    row = torch.randn(50, generator=torch.Generator().manual_seed(1)).double()
    seen: list[tuple[LogitsProcessor, Tensor]] = []
    chain = build_chain(request)
    result = chain(row, lambda processor, stage: seen.append((processor, stage)))
    assert torch.equal(result, chain(row))
    assert tuple(processor for processor, _ in seen) == chain.processors
    stage = row
    for processor, shown in seen:
        stage = processor(stage)
        assert torch.equal(stage, shown)


@pytest.mark.parametrize("make", [TopP, TypicalP])
def test_cuts_do_not_depend_on_the_number_of_threads(make: Callable[[float], LogitsProcessor]) -> None:
    row = torch.randn(60_000, generator=torch.Generator().manual_seed(2)).double() * 3
    num_threads = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(make(0.9)(row))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(*results)


def test_frequency_penalty_of_an_empty_output_changes_nothing() -> None:
    assert run(FrequencyPenalty(1.0, []), [1.0, 2.0]) == [1.0, 2.0]
