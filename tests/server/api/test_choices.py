"""Several answers to one prompt, and answers that have a deadline."""

from __future__ import annotations

import time

import pytest

from tests.server.live import Live, eventually

# The fake engine's later choices have the higher log-probabilities.


def test_n_tells_the_others_in_their_order(live: Live) -> None:
    details = live.generate("abc", n=3, details=True, max_new_tokens=2, temperature=1.0).json()["details"]
    others = details["best_of_sequences"]
    means = [sum(token["logprob"] for token in one["tokens"]) for one in (details, *others)]
    assert means == pytest.approx([-3 / 8, -3 / 16, -3 / 24])
    assert [request.choice for request in live.engine.requests] == [0, 1, 2]
    assert others[0] == {
        "generated_text": "ab",
        "finish_reason": "length",
        "generated_tokens": 2,
        "seed": details["seed"],
        "prefill": [],
        "tokens": others[0]["tokens"],
    }


def test_best_of_tells_the_best_first(live: Live) -> None:
    wish = {"best_of": 3, "details": True, "max_new_tokens": 2, "temperature": 1.0}
    details = live.generate("abc", **wish).json()["details"]
    means = [
        sum(token["logprob"] for token in one["tokens"]) for one in (details, *details["best_of_sequences"])
    ]
    assert means == sorted(means, reverse=True)
    assert len(means) == 3
    details = live.generate("abc", **wish, n=2).json()["details"]
    assert details["tokens"][0]["logprob"] == pytest.approx(-1 / 24)
    assert len(details["best_of_sequences"]) == 1
    assert (details["parameters"]["n"], details["parameters"]["best_of"]) == (2, 3)


def test_the_best_alone_needs_no_details(live: Live) -> None:
    assert live.generate("abc", best_of=3, max_new_tokens=2, top_k=5).json() == {"generated_text": "ab"}


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"n": 2}, "parameters.n is 2: it needs parameters.details, where the others are told"),
        ({"best_of": 2, "top_k": 3, "seed": 1}, "parameters.best_of cannot be had with parameters.seed"),
        ({"best_of": 2}, "parameters.best_of is 2: greedy answers are all the same"),
        ({"best_of": 2, "n": 3, "details": True, "top_k": 3}, "it must be at least parameters.n, 3"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, object], sentence: str, live: Live) -> None:
    response = live.generate(**parameters)
    assert response.status_code == 422
    assert sentence in response.json()["error"]


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_a_stream_tells_one_answer(name: str, live: Live) -> None:
    response = live.generate("abc", "/generate_stream", **{name: 2}, details=True, top_k=3)
    assert response.json()["error"] == f"parameters.{name} is 2: a stream tells one answer"
    assert live.engine.requests == []


def test_a_failed_choice_is_a_failed_request_and_nothing_is_left(live: Live) -> None:
    live.behaviour.fail_after = 1
    response = live.generate("abc", n=3, details=True, max_new_tokens=5)
    assert (response.status_code, response.json()["error_type"]) == (424, "generation")
    assert eventually(lambda: not live.engine.live)


def test_a_stream_that_fails_before_its_first_token_has_a_true_status(live: Live) -> None:
    live.behaviour.fail_after = 0
    response = live.generate("abc", "/generate_stream", max_new_tokens=5)
    assert (response.status_code, response.json()["error_type"]) == (424, "generation")


def test_a_deadline_ends_a_stream_in_its_last_event(live: Live) -> None:
    live.behaviour.delay_s = 0.05
    events = live.stream("abc", deadline_ms=400, max_new_tokens=100)
    assert 1 <= len(events) < 10
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["details"]["finish_reason"] == "deadline"
    assert events[-1]["details"]["generated_tokens"] == len(events)
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)
    assert eventually(lambda: not live.engine.live)


def test_a_deadline_ends_a_whole_answer(live: Live) -> None:
    live.behaviour.delay_s = 0.05
    details = live.generate("abc", deadline_ms=400, max_new_tokens=100, details=True).json()["details"]
    assert details["finish_reason"] == "deadline"
    assert 1 <= details["generated_tokens"] == len(details["tokens"]) < 10
    assert details["parameters"]["deadline_ms"] == 400


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_deadline_without_a_token_is_a_refusal(path: str, live: Live) -> None:
    live.behaviour.delay_s = 5.0
    began_s = time.monotonic()
    response = live.generate("abc", path, deadline_ms=50, max_new_tokens=100)
    assert (response.status_code, response.json()["error_type"]) == (429, "overloaded")
    assert response.json()["error"] == "parameters.deadline_ms passed before the first token"
    assert int(response.headers["retry-after"]) >= 1
    assert time.monotonic() - began_s < 4, "not at the token that came too late"
    assert eventually(lambda: not live.engine.live)


def test_an_answer_that_is_in_time_is_whole(live: Live) -> None:
    events = live.stream("abc", deadline_ms=60_000, max_new_tokens=5)
    assert [event["token"]["text"] for event in events] == list("abcab")
    assert events[-1]["details"]["finish_reason"] == "length"


def test_the_prompt_s_log_probabilities_are_told_with_each_answer(live: Live) -> None:
    wish = {"n": 2, "details": True, "decoder_input_details": True, "max_new_tokens": 1}
    details = live.generate("abc", **wish).json()["details"]
    assert [token["logprob"] for token in details["prefill"]] == [None, -0.5, -0.5]
    assert details["best_of_sequences"][0]["prefill"] == details["prefill"]
    assert [request.wants_prompt_logprobs for request in live.engine.requests] == [True, False]
