"""The request's word before the model's, the model's before the server's; and who is named for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.precedence import choose_sampling
from server.api.schemas import GenerateParameters, TextParameters
from server.errors import ValidationFailed
from server.generation_config import GenerationDefaults
from tests.server.fake_engine import INFO
from tests.server.live import Live, serve

WISHES = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
MODEL = GenerationDefaults(do_sample=True, sampling=WISHES, max_new_tokens=7, min_new_tokens=3)


@pytest.fixture(scope="module")
def sampling_model() -> Iterator[Live]:
    with serve(defaults=MODEL) as live:
        yield live


def told(live: Live, **parameters: object) -> dict[str, tuple[Any, str]]:
    """Each parameter as it took effect, and whose word it is."""
    response = live.generate(details=True, **parameters)
    assert response.status_code == 200, response.text
    details = response.json()["details"]
    assert details["parameters"].keys() == details["parameters_from"].keys()
    return {name: (value, details["parameters_from"][name]) for name, value in details["parameters"].items()}


def test_the_model_says_what_the_request_leaves_out(sampling_model: Live) -> None:
    every = told(sampling_model)
    assert every["do_sample"] == (True, "model")
    assert {name: every[name] for name in WISHES} == {
        name: (value, "model") for name, value in WISHES.items()
    }
    assert every["max_new_tokens"] == (7, "model")
    assert every["min_new_tokens"] == (3, "model")
    assert every["stop_token_ids"] == (list(INFO.end_token_ids), "model")
    assert every["min_p"] == (0.0, "server")
    assert every["seed"][1] == "server"
    assert every["details"] == (True, "request")


def test_the_request_has_the_last_word(sampling_model: Live) -> None:
    every = told(
        sampling_model, temperature=0.9, top_k=0, max_new_tokens=2, stop_token_ids=[5], seed=4, min_p=0.1
    )
    for name, value in (
        ("temperature", 0.9), ("top_k", 0), ("max_new_tokens", 2), ("stop_token_ids", [5]), ("seed", 4),
        ("min_p", 0.1), ("do_sample", True),
    ):  # fmt: skip
        assert every[name] == (value, "request")
    assert every["top_p"] == (0.9, "model")
    assert every["min_new_tokens"] == (2, "model")  # it gives way to the request's length
    assert told(sampling_model, ignore_eos=True)["stop_token_ids"] == ([], "request")


@pytest.mark.parametrize("greedy", [{"do_sample": False}, {"temperature": 0}])
def test_a_greedy_answer_takes_of_the_model_what_is_no_draws(
    greedy: dict[str, object], sampling_model: Live
) -> None:
    every = told(sampling_model, **greedy)
    assert every["temperature"] == (0.0, "request")
    assert every["do_sample"] == (False, "request")
    assert every["repetition_penalty"] == (1.1, "model")
    assert every["top_k"] == (0, "server")
    assert every["top_p"] == (1.0, "server")
    assert every["seed"] == (None, "server")


def test_the_models_length_gives_way_to_what_fits(sampling_model: Live) -> None:
    response = sampling_model.generate("a" * (INFO.max_total_tokens - 2), details=True)
    details = response.json()["details"]
    assert details["parameters"]["max_new_tokens"] == 2
    assert details["parameters"]["min_new_tokens"] == 2


def test_without_a_model_the_server_says_it(live: Live) -> None:
    every = told(live)
    assert every["do_sample"] == (False, "server")
    assert every["temperature"] == (0.0, "server")
    assert every["max_new_tokens"][1] == "server"
    assert every["stop_token_ids"] == (list(INFO.end_token_ids), "model")


@pytest.mark.parametrize(
    ("wish", "defaults", "is_greedy", "decider"),
    [
        ({}, GenerationDefaults(), True, "server"),
        ({}, GenerationDefaults(sampling={"temperature": 0.5}), True, "server"),
        ({}, GenerationDefaults(do_sample=False, sampling={"top_k": 5}), True, "model"),
        ({}, GenerationDefaults(do_sample=True), False, "model"),
        ({"seed": 5}, GenerationDefaults(do_sample=True), False, "model"),
        ({"top_k": 0}, GenerationDefaults(do_sample=True), False, "model"),
        ({"top_k": 4}, GenerationDefaults(do_sample=False), False, "request"),
        ({"do_sample": False, "top_k": 4}, GenerationDefaults(), False, "request"),
        ({"do_sample": False}, GenerationDefaults(do_sample=True), True, "request"),
        ({"do_sample": True}, GenerationDefaults(sampling={"temperature": 0.0}), False, "request"),
        ({"temperature": 0.5}, GenerationDefaults(do_sample=False), False, "request"),
        ({"temperature": 0.0, "top_k": 4}, GenerationDefaults(do_sample=True), True, "request"),
    ],
)  # fmt: skip
def test_who_decides_between_greedy_and_drawn(
    wish: dict[str, Any], defaults: GenerationDefaults, is_greedy: bool, decider: str
) -> None:
    parameters: TextParameters = GenerateParameters(**wish)
    sampling, origins = choose_sampling(parameters, defaults, vocab_size=100)
    assert sampling.is_greedy is is_greedy
    assert origins["do_sample"] == decider


def test_a_contradiction_within_the_request_is_refused_whatever_the_model_says() -> None:
    wish: TextParameters = GenerateParameters.model_validate({"do_sample": True, "temperature": 0.0})
    with pytest.raises(ValidationFailed, match="which is greedy"):
        choose_sampling(wish, MODEL, vocab_size=100)
