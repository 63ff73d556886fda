"""R17 and R18: numbers at the edge of every format, floods of strings, and texts that take long to cut."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.schemas import GenerateParameters
from server.protocol import MAX_HEAD_BYTES
from tests.server.api.test_parameters import FLOAT_FIELDS, INT_FIELDS
from tests.server.fake_engine import INFO
from tests.server.live import Live, hostile_tokenizer, serve

ROOM = 512 - 1  # for one token of prompt

# By the wire's table: the integers that are valid. What lies beside them is not.
INT_RANGES: dict[str, tuple[int, int]] = {
    "max_new_tokens": (1, ROOM),
    "top_k": (0, 2**31 - 1),
    "seed": (0, 2**64 - 1),
    "n": (1, 8),
    "best_of": (1, 8),
    "min_new_tokens": (0, ROOM),
    "truncate": (1, 2**2000),
    "top_n_tokens": (0, 20),
    "deadline_ms": (1, 2**2000),
    "priority": (-100, 100),
}
FLOAT_RANGES: dict[str, tuple[float, float]] = {  # the ends are valid
    "temperature": (0.0, 100.0),
    "top_p": (5e-324, 1.0),
    "typical_p": (5e-324, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (5e-324, 10.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
INTEGERS = [-(2**63), -1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**400]
NO_INTEGERS = ["1e400", "-1e400", "1.5", "1.0", "1e2", '"1"', "true", "false", "[]", "[1]", "{}"]
NO_NUMBERS = ["1e999", "-1e999", '"nan"', '"Infinity"', '"1"', "true", "[]", "[1.0]", "{}"]
FLOATS = [-(2.0**63), -1.0, -0.0, 0.0, 5e-324, 0.5, 1.0, 1.5, 2.0**31, 1.7e308]
NO_JSON = ["NaN", "Infinity", "-Infinity", "nan", "+1", "01", ".5", "1.", "0x1", "1_000", "--1"]


def send_to(http: httpx.Client, name: str, literal: str) -> httpx.Response:
    """The answer to a request in which this parameter has this spelling."""
    limit = "" if name in ("max_new_tokens", "min_new_tokens") else '"max_new_tokens": 1, '
    body = f'{{"inputs": "a", "parameters": {{{limit}"{name}": {literal}}}}}'
    return http.post("/generate", content=body, headers={"content-type": "application/json"})


def send(live: Live, name: str, literal: str) -> tuple[int, dict[str, Any]]:
    """Its status and what it says."""
    response = send_to(live.http, name, literal)
    return response.status_code, response.json()


def assert_refused(live: Live, name: str, literal: str) -> None:
    status, answer = send(live, name, literal)
    assert status == 422, answer
    assert answer["error_type"] == "validation"
    assert f"parameters.{name} " in answer["error"]
    assert len(answer["error"]) < 300
    assert not live.engine.requests


def test_the_ranges_are_of_every_number() -> None:
    assert set(INT_RANGES) == set(INT_FIELDS)
    assert set(FLOAT_RANGES) == set(FLOAT_FIELDS)
    numbers = {
        name
        for name, schema in GenerateParameters.model_json_schema()["properties"].items()
        if schema["anyOf"][0].get("type") in ("integer", "number")
    }
    assert numbers == {*INT_FIELDS, *FLOAT_FIELDS}


@pytest.mark.parametrize("name", INT_FIELDS)
@pytest.mark.parametrize("value", INTEGERS, ids=lambda value: f"{value:.3g}" if value < 1e300 else "huge")
def test_an_integer_is_valid_or_a_422_that_names_its_field(name: str, value: int, live: Live) -> None:
    least, most = INT_RANGES[name]
    if not least <= value <= most:
        assert_refused(live, name, str(value))
    else:
        in_time = (200, 429) if name == "deadline_ms" else (200,)  # a millisecond may be too short
        assert send(live, name, str(value))[0] in in_time
        assert len(live.engine.requests) == 1


@pytest.mark.parametrize("name", INT_FIELDS)
@pytest.mark.parametrize("literal", NO_INTEGERS)
def test_what_is_no_integer_is_a_422_that_names_its_field(name: str, literal: str, live: Live) -> None:
    assert_refused(live, name, literal)


@pytest.mark.parametrize("name", FLOAT_FIELDS)
@pytest.mark.parametrize("value", FLOATS)
def test_a_number_is_valid_or_a_422_that_names_its_field(name: str, value: float, live: Live) -> None:
    least, most = FLOAT_RANGES[name]
    if least <= value <= most:
        assert send(live, name, repr(value))[0] == 200
        assert len(live.engine.requests) == 1
    else:
        assert_refused(live, name, repr(value))


@pytest.mark.parametrize("name", FLOAT_FIELDS)
@pytest.mark.parametrize("literal", NO_NUMBERS)
def test_what_is_no_number_is_a_422_that_names_its_field(name: str, literal: str, live: Live) -> None:
    assert_refused(live, name, literal)


@pytest.mark.parametrize("literal", [*NO_NUMBERS, "null", "-100.0001", "101", str(10**400), "1.7e308"])
def test_what_is_no_bias_is_a_422_that_names_its_field(literal: str, live: Live) -> None:
    status, answer = send(live, "logit_bias", f'{{"7": {literal}}}')
    assert (status, answer["error_type"]) == (422, "validation"), answer
    assert answer["error"].startswith('parameters.logit_bias["7"] is ')
    assert len(answer["error"]) < 300
    assert not live.engine.requests


@pytest.mark.parametrize("key", [*map(str, INTEGERS), *NO_INTEGERS, "NaN", "", " 1", "07", "\u0661"])
def test_what_is_no_id_of_a_bias_is_a_422(key: str, live: Live) -> None:
    is_valid = key.isdecimal() and key.isascii() and int(key) < INFO.vocab_size and str(int(key)) == key
    status, answer = send(live, "logit_bias", json.dumps({key: 1}))
    assert status == (200 if is_valid else 422), answer
    assert is_valid or answer["error"].startswith("parameters.logit_bias")


@pytest.mark.parametrize(
    "literal", [*(str(value) for value in INTEGERS if not 0 <= value < INFO.vocab_size), *NO_INTEGERS, "null"]
)
def test_what_is_no_end_token_is_a_422(literal: str, live: Live) -> None:
    status, answer = send(live, "stop_token_ids", f"[97, {literal}]")
    assert (status, answer["error_type"]) == (422, "validation"), answer
    assert answer["error"].startswith("parameters.stop_token_ids[1] is ")
    assert not live.engine.requests


@pytest.mark.parametrize("name", [*INT_FIELDS, *FLOAT_FIELDS, "logit_bias", "stop_token_ids"])
@pytest.mark.parametrize("literal", NO_JSON)
def test_what_is_no_json_is_a_400_wherever_it_stands(name: str, literal: str, live: Live) -> None:
    inside = {"logit_bias": f'{{"7": {literal}}}', "stop_token_ids": f"[{literal}]"}
    status, answer = send(live, name, inside.get(name, literal))
    assert (status, answer["error_type"]) == (400, "bad_request")
    assert not live.engine.requests


@pytest.mark.parametrize("name", [*INT_FIELDS, *FLOAT_FIELDS])
def test_null_is_absent(name: str, live: Live) -> None:
    assert send(live, name, "null")[0] == 200
    assert len(live.engine.requests) == 1


@pytest.mark.parametrize("path", ["/generate", "/detokenize"])
@pytest.mark.parametrize(
    "literal", [*(str(value) for value in INTEGERS if not 0 <= value < INFO.vocab_size), *NO_INTEGERS, "null"]
)
def test_what_is_no_token_id_is_a_422(path: str, literal: str, live: Live) -> None:
    name = "inputs" if path == "/generate" else "ids"
    response = live.http.post(
        path, content=f'{{"{name}": [97, {literal}]}}', headers={"content-type": "application/json"}
    )
    assert response.status_code == 422, response.text
    assert response.json()["error"].startswith(name)
    assert not live.engine.requests


def test_a_hundred_thousand_stop_strings_are_a_422(live: Live) -> None:
    response = live.generate(stop=["x" * 10] * 100_000)
    assert response.status_code == 422
    assert response.json()["error"].startswith("parameters.stop is a list of 100000: ")
    assert not live.engine.requests


def test_a_request_id_of_a_megabyte_is_refused_unheld_and_not_told_again(live: Live) -> None:
    answer = live.raw(b"GET /health HTTP/1.1\r\nhost: a\r\nx-request-id: " + b"y" * 2**20 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert len(answer) < 1000
    assert f"over {MAX_HEAD_BYTES} bytes".encode() in answer


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/tokenize"])
def test_while_a_long_text_is_cut_another_stream_goes_on(
    path: str, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cutting waits here for the whole of another stream: on the event loop it would wait for ever."""
    began, may_go_on = threading.Event(), threading.Event()
    name = "encode_with_offsets" if path == "/tokenize" else "encode"
    real = getattr(live.tokenizer, name)

    def encode(text: str, *arguments: Any, **options: Any) -> Any:
        if len(text) > 1000:
            began.set()
            assert may_go_on.wait(30)
        return real(text, *arguments, **options)

    monkeypatch.setattr(live.tokenizer, name, encode)
    text = "a" * (60_000 if path == "/tokenize" else 10**6)
    body: dict[str, Any] = {"inputs": text}
    if path != "/tokenize":
        body["parameters"] = {"truncate": 10, "max_new_tokens": 1}
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(live.http.post(path, json=body).status_code))
    sender.start()
    try:
        assert began.wait(30)
        assert len(live.stream("b", max_new_tokens=50)) == 50
        assert not statuses
    finally:
        may_go_on.set()
        sender.join()
    assert statuses == [200]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """With a tokenizer that takes minutes over a thousand times "a", and panics at a hundred times "b"."""
    folder = tmp_path_factory.mktemp("hostile")
    with serve(tokenizer=hostile_tokenizer(folder, "a+a+a+!|(b|bb)+!")) as live:
        yield live


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/tokenize"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * 1000, "inputs takes the model's tokenizer more than 0.3 s of"),
        ("b" * 100, "inputs cannot be cut"),
    ],
    ids=["endless", "panic"],
)
def test_a_tokenizer_that_fails_costs_its_text_a_422_and_the_others_nothing(
    path: str, text: str, message: str, hostile: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.text.tokenizer.max_cpu_s", lambda text: 0.3)
    threads: list[str] = []
    real = hostile.tokenizer._encode

    def encode(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*arguments, **options)

    monkeypatch.setattr(hostile.tokenizer, "_encode", encode)
    answers: list[Any] = []
    sender = threading.Thread(target=lambda: answers.append(hostile.http.post(path, json={"inputs": text})))
    sender.start()
    events = hostile.stream([120], max_new_tokens=50)
    sender.join()
    assert len(events) == 50
    [answer] = answers
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), answer.text
    assert answer.json()["error"].startswith(message)
    assert hostile.generate("x", max_new_tokens=1).status_code == 200
    assert threads == ["AnyIO worker thread"] * 2  # a short body's work is done on the event loop elsewhere
