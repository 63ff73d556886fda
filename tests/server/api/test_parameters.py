"""Each row of the wire's table of parameters, at its bounds and past them."""

from __future__ import annotations

import dataclasses

import pytest

from model.sampling.sampling_params import SamplingParams
from server.api.schemas import GenerateParameters
from server.engine.request import GenerationRequest
from tests.server.fake_engine import END_ID, INFO
from tests.server.live import Live

TOP_ID = INFO.vocab_size - 1

TAKEN: list[tuple[str, list[object]]] = [
    ("max_new_tokens", [1, 509]),
    ("do_sample", [True, False]),
    ("temperature", [0, 0.0, 1e-9, 1, 100, 100.0]),
    ("top_k", [0, 1, 2**31 - 1]),
    ("top_p", [1e-9, 1, 1.0]),
    ("typical_p", [1e-9, 1.0]),
    ("min_p", [0, 1.0]),
    ("repetition_penalty", [1e-9, 10]),
    ("frequency_penalty", [-2, 2.0]),
    ("presence_penalty", [-2, 2.0]),
    ("logit_bias", [{}, {"0": -100}, {str(TOP_ID): 100.0}, {str(i): 0 for i in range(INFO.vocab_size)}]),
    ("stop", [[], ["x"] * 16, ["x" * 256]]),
    ("include_stop_str", [True, False]),
    ("stop_token_ids", [[], [0, TOP_ID], [1] * 128]),
    ("ignore_eos", [True, False]),
    ("min_new_tokens", [0, 509]),
    ("seed", [0, 2**53, 2**64 - 1]),
    ("n", [1, 2, 8]),
    ("best_of", [1]),
    ("return_full_text", [True, False]),
    ("truncate", [1, 2**40]),
    ("details", [True, False]),
    ("decoder_input_details", [False]),
    ("top_n_tokens", [0, 20]),
    ("logprobs_mode", ["raw", "processed"]),
    ("grammar", []),
    ("deadline_ms", [1000, 2**53 + 1, 2**63, 10**300]),
    ("priority", [-100, 100]),
    ("watermark", [False]),
    ("adapter_id", []),
]
REFUSED: list[tuple[str, list[object]]] = [
    ("max_new_tokens", [0, -1, 510, 2**63, 10**400]),
    ("temperature", [-1e-9, 100.1, 101, 10**400]),
    ("top_k", [-1, -(2**63), 2**31, 2**64]),
    ("top_p", [0, 0.0, -1, 1.0000001, 2]),
    ("typical_p", [0, 1.1]),
    ("min_p", [-1e-9, 1.1]),
    ("repetition_penalty", [0, -1, 10.1]),
    ("frequency_penalty", [-2.1, 2.1]),
    ("presence_penalty", [-2.1, 2.1]),
    ("logit_bias", [{"0": -100.1}, {"0": 101}, {str(TOP_ID + 1): 1}, {"-1": 1}, {"01": 1}, {"x": 1},
                    {"0": None}, {"0": "1"}, {"0": True}, {str(i): 0 for i in range(301)}, []]),
    ("stop", ["x", ["x"] * 17, ["x"] * 100_000, ["x" * 257], [""], [None], [1]]),
    ("stop_token_ids", [[TOP_ID + 1], [-1], [1] * 129, ["1"], [1.0], [True]]),
    ("min_new_tokens", [-1, 510]),
    ("seed", [-1, 2**64]),
    ("n", [0, 9]),
    ("best_of", [0, 2, 9]),
    ("truncate", [0, -1]),
    ("decoder_input_details", [True]),
    ("top_n_tokens", [-1, 21]),
    ("logprobs_mode", ["", "Raw", 1]),
    ("grammar", [{"type": "regex", "value": "a"}, {"type": "other", "value": 1}, {}, "json"]),
    ("deadline_ms", [0, -1]),
    ("priority", [-101, 101]),
    ("watermark", [True]),
    ("adapter_id", ["a", ""]),
]  # fmt: skip

INT_FIELDS = [
    "max_new_tokens", "top_k", "seed", "n", "best_of", "min_new_tokens", "truncate", "top_n_tokens",
    "deadline_ms", "priority",
]  # fmt: skip
FLOAT_FIELDS = [
    "temperature", "top_p", "typical_p", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty",
]  # fmt: skip
BOOL_FIELDS = [
    "do_sample", "include_stop_str", "ignore_eos", "return_full_text", "details", "decoder_input_details",
    "watermark",
]  # fmt: skip


def pairs(table: list[tuple[str, list[object]]]) -> list[tuple[str, object]]:
    return [(name, value) for name, values in table for value in values]


def asked(live: Live, inputs: object = "abc", /, **parameters: object) -> GenerationRequest:
    """What the engine was asked with these parameters."""
    response = live.generate(inputs, **parameters)
    assert response.status_code == 200, response.text
    return live.engine.requests[-1]


def refusal(live: Live, **parameters: object) -> str:
    response = live.generate(**parameters)
    assert response.status_code == 422, response.text
    assert response.json()["error_type"] == "validation"
    assert not live.engine.requests
    return str(response.json()["error"])


def test_the_table_is_whole() -> None:
    assert {name for name, _ in TAKEN} == set(GenerateParameters.model_fields)


@pytest.mark.parametrize(("name", "value"), pairs(TAKEN))
def test_a_value_at_its_bound_is_taken(name: str, value: object, live: Live) -> None:
    asked(live, **{"details": True, name: value})  # which some of them need


@pytest.mark.parametrize(("name", "value"), pairs(REFUSED))
def test_a_value_past_its_bound_is_a_422_that_names_the_field(name: str, value: object, live: Live) -> None:
    assert f"parameters.{name}" in refusal(live, **{name: value})


@pytest.mark.parametrize("name", INT_FIELDS)
@pytest.mark.parametrize("value", [1.0, 1.5, "1", True, False, [], {}])
def test_nothing_but_an_integer_is_an_integer(name: str, value: object, live: Live) -> None:
    assert f"parameters.{name} is " in refusal(live, **{name: value})


@pytest.mark.parametrize("name", FLOAT_FIELDS)
@pytest.mark.parametrize("value", ["1", "nan", True, [], {}])
def test_nothing_but_a_number_is_a_number(name: str, value: object, live: Live) -> None:
    assert f"parameters.{name} is " in refusal(live, **{name: value})


@pytest.mark.parametrize("name", BOOL_FIELDS)
@pytest.mark.parametrize("value", [0, 1, "true", 1.0, []])
def test_nothing_but_a_boolean_is_a_boolean(name: str, value: object, live: Live) -> None:
    assert f"parameters.{name} is " in refusal(live, **{name: value})


@pytest.mark.parametrize("name", FLOAT_FIELDS)
@pytest.mark.parametrize("literal", ["1e400", "-1e400"])
def test_a_number_beyond_the_doubles_is_a_422(name: str, literal: str, live: Live) -> None:
    body = f'{{"inputs": "a", "parameters": {{"{name}": {literal}}}}}'
    response = live.http.post("/generate", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert name in response.json()["error"]


def test_null_is_the_same_as_absent_at_both_levels(live: Live) -> None:
    nulls = dict.fromkeys(GenerateParameters.model_fields)
    absent = live.generate(details=True).json()["details"]["parameters"]
    assert live.generate(**nulls | {"details": True}).json()["details"]["parameters"] == absent
    body = {"inputs": "abc", "prompt": None, "parameters": None, "stream": None}
    assert live.http.post("/generate", json=body).status_code == 200


def test_every_sampling_field_and_its_bounds_come_from_the_model() -> None:
    assert {field.name for field in dataclasses.fields(SamplingParams)} <= set(
        GenerateParameters.model_fields
    )
    schema = GenerateParameters.model_json_schema()["properties"]
    assert schema["repetition_penalty"]["anyOf"][0] == {
        "exclusiveMinimum": 0.0, "maximum": 10.0, "type": "number",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "is_greedy"),
    [
        ({}, True),
        ({"seed": 5}, True),
        ({"temperature": 0}, True),
        ({"temperature": 0, "top_k": 5}, True),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1}, True),
        ({"do_sample": False}, True),
        ({"do_sample": False, "temperature": 0.7}, False),  # what TGI's own client sends, and means
        ({"repetition_penalty": 1.2}, True),
        ({"do_sample": True}, False),
        ({"temperature": 1.0}, False),
        ({"temperature": 0.1}, False),
        ({"top_k": 5}, False),
        ({"top_p": 0.9}, False),
        ({"typical_p": 0.9}, False),
        ({"min_p": 0.1}, False),
    ],
)
def test_what_makes_an_answer_greedy(parameters: dict[str, object], is_greedy: bool, live: Live) -> None:
    assert asked(live, **parameters).sampling.is_greedy is is_greedy
    details = live.generate(details=True, **parameters).json()["details"]
    assert (details["seed"] is None) is is_greedy
    assert details["parameters"]["do_sample"] is not is_greedy


def test_a_draw_at_temperature_zero_is_a_contradiction(live: Live) -> None:
    sentence = refusal(live, do_sample=True, temperature=0)
    assert "do_sample" in sentence
    assert "temperature" in sentence


def test_a_seed_that_was_not_given_is_drawn_and_returned(live: Live) -> None:
    seeds = [live.generate(do_sample=True, details=True).json()["details"]["seed"] for _ in range(4)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert [request.sampling.seed for request in live.engine.requests] == seeds


def test_a_given_seed_comes_back_whole(live: Live) -> None:
    details = live.generate(do_sample=True, details=True, seed=2**64 - 1).json()["details"]
    assert details["seed"] == details["parameters"]["seed"] == 2**64 - 1


def test_without_a_limit_the_answer_fills_the_context(live: Live) -> None:
    assert asked(live).max_new_tokens == 512 - 3


@pytest.mark.parametrize(
    ("parameters", "end_ids"),
    [
        ({}, (END_ID,)),
        ({"ignore_eos": True}, ()),
        ({"stop_token_ids": [3, 4]}, (3, 4)),
        ({"stop_token_ids": [3], "ignore_eos": True}, (3,)),
        ({"stop_token_ids": []}, ()),
    ],
)
def test_what_ends_an_answer(parameters: dict[str, object], end_ids: tuple[int, ...], live: Live) -> None:
    assert asked(live, **parameters).end_ids == end_ids


def test_logit_bias_becomes_pairs_in_order(live: Live) -> None:
    assert asked(live, logit_bias={"10": 1, "9": -2.5}).sampling.logit_bias == ((9, -2.5), (10, 1.0))


def test_truncate_keeps_the_last_tokens(live: Live) -> None:
    ids = tuple(live.tokenizer.encode("abcdef"))
    assert asked(live, "abcdef", truncate=2).prompt_ids == ids[-2:]
    assert asked(live, "abcdef", truncate=6).prompt_ids == ids


def test_the_answer_tells_every_parameter_as_it_took_effect(live: Live) -> None:
    given = {
        "top_p": 0.5,
        "seed": 3,
        "stop": ["x"],
        "max_new_tokens": 4,
        "logit_bias": {"5": 1.0},
        "priority": 2,
    }
    told = live.generate(details=True, **given).json()["details"]["parameters"]
    assert told.keys() == GenerateParameters.model_fields.keys()
    assert told == told | given
    assert told["do_sample"] is True
    assert told["stop_token_ids"] == [END_ID]


def test_prompt_details_need_details_and_no_stream(live: Live) -> None:
    assert "parameters.details" in refusal(live, decoder_input_details=True)
    body = {"inputs": "a", "stream": True, "parameters": {"details": True, "decoder_input_details": True}}
    for path in ("/generate", "/generate_stream"):
        assert "stream" in live.http.post(path, json=body).json()["error"]


def test_more_than_can_come_cannot_be_the_least(live: Live) -> None:
    sentence = refusal(live, min_new_tokens=5, max_new_tokens=4)
    assert "5" in sentence
    assert "4" in sentence
