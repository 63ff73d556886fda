"""Bodies that are wrong, and what is said about them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from anyio import CapacityLimiter

from server.api.body import off_loop
from server.settings import Settings
from tests.server.fake_engine import INFO
from tests.server.live import Live

LIMIT = Settings.model_fields["max_body_bytes"].default


def post(
    live: Live, content: bytes | Iterator[bytes], path: str = "/generate", media: str = "application/json"
) -> httpx.Response:
    return live.http.post(path, content=content, headers={"content-type": media})


def refusal(live: Live, body: object) -> str:
    response = live.http.post("/generate", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["error_type"] == "validation"
    assert not live.engine.requests
    return str(response.json()["error"])


def test_every_malformed_json_text_is_a_400(live: Live, shared_data: Path) -> None:
    files = sorted((shared_data / "robustness" / "JSONTestSuite").rglob("n_*.json"))
    assert len(files) > 150
    for file in files:
        response = post(live, file.read_bytes())
        assert response.status_code == 400, file.name
        assert response.json()["error_type"] == "bad_request"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"inputs": NaN}',
        b'{"inputs": "a", "parameters": {"temperature": NaN}}',
        b'{"inputs": "a", "parameters": {"temperature": -Infinity}}',
        b'{"inputs": "\xff"}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "a", "inputs": "b"}',
        b"[" * 33 + b"]" * 33,
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/tokenize", "/detokenize"])
def test_what_two_readers_could_read_differently_is_a_400(content: bytes, path: str, live: Live) -> None:
    response = post(live, content, path)
    assert response.status_code == 400
    assert response.json()["error_type"] == "bad_request"


@pytest.mark.parametrize(
    "media", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_another_content_type_is_a_415(media: str, live: Live) -> None:
    response = post(live, b'{"inputs": "a"}', media=media)
    assert response.status_code == 415
    assert response.json()["error_type"] == "unsupported_media_type"


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("BR", 415), ("identity", 200), ("", 200)])
def test_a_compressed_body_is_a_415(coding: str, status: int, live: Live) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    response = live.http.post("/generate", content=b'{"inputs": "a"}', headers=headers)
    assert response.status_code == status
    assert status == 200 or "compressed" in response.json()["error"]


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_spelt_in_other_ways(media: str, live: Live) -> None:
    assert post(live, b'{"inputs": "a"}', media=media).status_code == 200


def padded(num_bytes: int) -> bytes:
    body = b'{"inputs": "a"}'
    return body + b" " * (num_bytes - len(body))


def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_a_413(live: Live) -> None:
    assert post(live, padded(LIMIT)).status_code == 200
    response = post(live, padded(LIMIT + 1))
    assert response.status_code == 413
    assert response.json()["error_type"] == "too_large"


def test_a_body_of_unknown_length_is_counted_as_it_comes(live: Live) -> None:
    assert post(live, iter([padded(LIMIT - 5), b" " * 5])).status_code == 200
    assert post(live, iter([padded(LIMIT - 5), b" " * 6])).status_code == 413


def test_a_declared_length_over_the_limit_is_refused_unread(live: Live) -> None:
    head = (
        b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    assert live.raw(head % 10**12, is_half=True).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_a_408_and_the_end_of_the_connection(live: Live) -> None:
    head = (
        b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    )
    answer = live.raw(head)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error_type":"request_timeout"' in answer
    assert b"connection: close" in answer.lower()


def test_a_client_that_leaves_in_its_body_harms_nobody(live: Live) -> None:
    with socket.create_connection(live.address) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
    assert live.generate(max_new_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("given", "nearest"), [("temprature", "temperature"), ("topk", "top_k"), ("seeds", "seed")]
)
def test_an_unknown_parameter_is_named_with_the_nearest(given: str, nearest: str, live: Live) -> None:
    sentence = refusal(live, {"inputs": "a", "parameters": {given: 1}})
    assert sentence == f'unknown field "{given}" in parameters; the nearest known one is {nearest}'


@pytest.mark.parametrize(
    ("given", "nearest"), [("input", "inputs"), ("parametres", "parameters"), ("strem", "stream")]
)
def test_an_unknown_field_is_named_with_the_nearest(given: str, nearest: str, live: Live) -> None:
    assert refusal(live, {given: 1}) == f'unknown field "{given}"; the nearest known one is {nearest}'


@pytest.mark.parametrize("name", ["temperature", "max_new_tokens", "stop", "seed"])
def test_a_parameter_at_the_top_level_is_told_its_place(name: str, live: Live) -> None:
    assert refusal(live, {"inputs": "a", name: 1}) == f"{name} belongs under parameters, not at the top level"


def test_a_clients_text_is_escaped_and_cut(live: Live) -> None:
    name = "\x1b[2J\u202e" + "x" * 500
    for body in ({name: 1}, {"inputs": "a", "parameters": {name: 1}}, {"inputs": "a", "stream": name}):
        sentence = refusal(live, body)
        assert len(sentence) < 260
        assert all(" " <= character <= "~" or character == "…" for character in sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "the body is a list of 0, it must be an object"),
        ("a", 'the body is "a", it must be an object'),
        ({}, "inputs is required"),
        ({"inputs": None}, "inputs is required"),
        ({"inputs": "a", "prompt": "b"}, "inputs and prompt are two names for one field: give one of them"),
        ({"inputs": 1}, "inputs is 1: it must be a string or a list of token ids"),
        ({"inputs": ["a"]}, "inputs is a list of 1: it must be a string or a list of token ids"),
        ({"inputs": [1.0]}, "inputs is a list of 1: it must be a string or a list of token ids"),
        ({"inputs": [True]}, "inputs is a list of 1: it must be a string or a list of token ids"),
        ({"inputs": ""}, "inputs is empty: it must have at least one token"),
        ({"prompt": []}, "prompt is empty: it must have at least one token"),
        ({"inputs": [0, 259]}, "inputs[1] is 259, it must be 0 to 258"),
        ({"prompt": [-1]}, "prompt[0] is -1, it must be 0 to 258"),
        ({"inputs": "a", "stream": 1}, "stream is 1: it must be a valid boolean"),
        ({"inputs": "a", "parameters": []}, "parameters is a list of 0: it must be an object"),
        (
            {"inputs": "a" * 512},
            "inputs has 512 tokens, at most 511 leave room for an answer: "
            "parameters.truncate keeps the last of them",
        ),
        (
            {"inputs": "a" * 70_000},  # refused unread: no token is longer than the seven bytes of <|end|>
            "inputs has at least 10000 tokens, at most 511 leave room for an answer: "
            "parameters.truncate keeps the last of them",
        ),
        (
            {"inputs": "a" * 500, "parameters": {"max_new_tokens": 13}},
            "parameters.max_new_tokens is 13, at most 12 fit: the prompt has 500 tokens, and the context 512",
        ),
    ],
)  # fmt: skip
def test_a_wrong_body_is_told_what_is_wrong(body: object, sentence: str, live: Live) -> None:
    assert refusal(live, body) == sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {f"x{index}": 1 for index in range(100_000)}),
        ("grammar", {f"x{index}": 1 for index in range(100_000)}),
        ("stop", [1] * 500_000),
        ("stop_token_ids", [-1] * 500_000),
    ],
)
def test_a_body_full_of_mistakes_is_refused_by_its_size(name: str, value: object, live: Live) -> None:
    assert "at most" in refusal(live, {"inputs": "a", "parameters": {name: value}})


def test_a_prompt_may_be_ids_and_have_its_other_name(live: Live) -> None:
    for body in ({"inputs": [64, 65]}, {"prompt": [64, 65]}, {"prompt": "ab"}):
        assert live.http.post("/generate", json=body).status_code == 200
    assert {request.prompt_ids for request in live.engine.requests} == {(64, 65)}


def test_a_long_prompt_is_encoded_like_a_short_one(live: Live) -> None:
    text = "the " * 5000
    body = {"inputs": text, "parameters": {"truncate": 400}}
    assert live.http.post("/generate", json=body).status_code == 200
    assert live.engine.requests[-1].prompt_ids == tuple(live.tokenizer.encode(text)[-400:])


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            "In the",
            "inputs contains a token that the model has no embedding for: its id is 258, it must be 0 to 257",
        ),
        ([0, 258], "inputs[1] is 258, it must be 0 to 257"),
    ],
)
def test_a_token_that_the_model_does_not_have_never_reaches_it(
    inputs: object, sentence: str, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.engine, "info", dataclasses.replace(INFO, vocab_size=258))
    assert refusal(live, {"inputs": inputs}) == sentence
    assert live.generate("In th", max_new_tokens=1).status_code == 200


def test_a_short_body_is_worked_on_at_once_and_long_ones_two_at_a_time() -> None:
    loop_thread = threading.get_ident()
    lock = threading.Lock()
    num_running = most_running = 0

    def work() -> bool:
        nonlocal num_running, most_running
        with lock:
            num_running += 1
            most_running = max(most_running, num_running)
        time.sleep(0.02)
        with lock:
            num_running -= 1
        return threading.get_ident() == loop_thread

    async def all_at_once(num_bytes: int, *, is_tame: bool = True) -> list[bool]:
        threads = CapacityLimiter(2)
        return await asyncio.gather(*(off_loop(num_bytes, work, threads, is_tame=is_tame) for _ in range(6)))

    assert asyncio.run(all_at_once(4096)) == [True] * 6
    assert most_running == 1
    assert asyncio.run(all_at_once(4097)) == [False] * 6
    assert most_running == 2
    assert asyncio.run(all_at_once(1, is_tame=False)) == [False] * 6


def test_tokens_of_a_text_name_their_characters(live: Live) -> None:
    tokens = live.http.post("/tokenize", json={"inputs": "the é"}).json()
    assert [(token["text"], token["start"], token["stop"]) for token in tokens] == [
        ("the", 0, 3), (" ", 3, 4), ("é", 4, 5), ("é", 4, 5),
    ]  # fmt: skip
    ids = [token["id"] for token in tokens]
    assert live.http.post("/detokenize", json={"ids": ids}).json() == {"text": "the é"}


@pytest.mark.parametrize(
    ("path", "field", "unit", "sentence"),
    [
        ("/tokenize", "inputs", "é", "inputs has 65537 characters, at most 65536 are taken"),
        ("/detokenize", "ids", [97], "ids is a list of 65537: it must have at most 65536 items, not 65537"),
    ],
)
def test_the_tokenizers_routes_take_so_much_and_no_more(
    path: str, field: str, unit: str | list[int], sentence: str, live: Live
) -> None:
    assert live.http.post(path, json={field: unit * 65_536}).status_code == 200
    response = live.http.post(path, json={field: unit * 65_537})
    assert response.status_code == 422
    assert response.json() == {"error": sentence, "error_type": "validation"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"inputs": [1]}),
        ("/tokenize", {"inputs": "a", "add_special_tokens": 1}),
        ("/tokenize", {"inputs": "a", "ids": []}),
        ("/detokenize", {"ids": "a"}),
        ("/detokenize", {"ids": [259]}),
        ("/detokenize", {"ids": [-1]}),
        ("/detokenize", {"ids": [1.0]}),
    ],
)
def test_the_tokenizers_routes_refuse_too(path: str, body: object, live: Live) -> None:
    response = live.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.json()["error_type"] == "validation"
