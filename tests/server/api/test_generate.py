"""Answers, streams, and clients that leave them."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import GenerationError

from server.api.answers import GenerateAnswer, StreamEvent
from server.text.detokenizer import StreamText
from tests.server.fake_engine import END_ID
from tests.server.live import Live, eventually, parse_events

# Two characters of two and of four bytes, and one that many readers take for the end of a line.
TEXT = "the é🙂\u2028 end. "


def joined(events: list[dict[str, Any]]) -> str:
    return "".join(event["token"]["text"] for event in events if not event["token"]["special"])


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"max_new_tokens": 1},
        {"max_new_tokens": 7},
        {"max_new_tokens": 40},
        {"stop": ["é🙂"]},
        {"stop": ["é🙂"], "include_stop_str": False},
        {"stop": ["nothing", "d. the"], "include_stop_str": False, "max_new_tokens": 100},
        {"temperature": 0.7, "seed": 5, "max_new_tokens": 30},
        {"top_n_tokens": 3, "max_new_tokens": 12},
    ],
)
def test_a_stream_says_the_same_as_the_whole_answer(parameters: dict[str, object], live: Live) -> None:
    events = live.stream(TEXT, **parameters)
    whole = live.generate(TEXT, details=True, **parameters).json()
    for event in events:
        StreamEvent.model_validate(event)
    GenerateAnswer.model_validate(whole)

    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    last = events[-1]
    assert last["generated_text"] == joined(events) == whole["generated_text"]
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    for name in ("finish_reason", "generated_tokens", "input_length"):
        assert last["details"][name] == whole["details"][name]
    assert last["details"]["generated_tokens"] == len(events)
    if "top_n_tokens" in parameters:
        assert [event["top_tokens"] for event in events] == whole["details"]["top_tokens"]
    else:
        assert "top_tokens" not in events[0]
        assert "top_tokens" not in whole["details"]


def test_a_streams_headers_keep_proxies_from_holding_it_back(live: Live) -> None:
    response = live.generate("abc", "/generate_stream", max_new_tokens=2)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


def test_lines_end_only_where_events_do_for_a_reader_that_splits_by_unicode(live: Live) -> None:
    content = live.generate("a\u2028\u2029\u0085b", "/generate_stream", max_new_tokens=12).content
    assert content.decode().splitlines() == content.decode().split("\n")[:-1]
    assert parse_events(content)[-1]["generated_text"].startswith("a\u2028\u2029\u0085b")


def test_silence_is_filled_with_comments_and_loses_nothing(live: Live) -> None:
    live.behaviour.delay_s = 0.25
    content = live.generate("abc", "/generate_stream", max_new_tokens=2).content
    assert content.count(b":\n\n") >= 4
    assert parse_events(content)[-1]["generated_text"] == "ab"


def test_details_come_only_when_asked_for(live: Live) -> None:
    assert live.generate(max_new_tokens=2).json() == {"generated_text": "ab"}
    details = live.generate(max_new_tokens=2, details=True).json()["details"]
    assert details["prefill"] == []
    assert details["timings"] == {"queue_ms": 1, "prefill_ms": 2, "decode_ms": 3, "cached_tokens": 0}


def test_an_answer_names_what_its_bits_depend_on(live: Live) -> None:
    info = live.http.get("/info").json()
    expected = "-".join(
        (info["fingerprint"][:16], info["model_dtype"], info["kernels"], info["library"], info["version"])
    )
    details = live.generate(max_new_tokens=2, details=True).json()["details"]
    assert details["fingerprint"] == expected
    last = parse_events(live.generate("abc", "/generate_stream", max_new_tokens=2).content)[-1]
    assert last["details"]["fingerprint"] == expected


def test_prefill_is_the_prompt_and_its_first_token_has_no_probability(live: Live) -> None:
    answer = live.generate("abc", max_new_tokens=1, details=True, decoder_input_details=True).json()
    prefill = answer["details"]["prefill"]
    assert [(token["text"], token["logprob"]) for token in prefill] == [("a", None), ("b", -0.5), ("c", -0.5)]


def test_a_whole_answer_has_tgis_headers(live: Live) -> None:
    headers = live.generate("abc", max_new_tokens=4).headers
    assert headers["x-prompt-tokens"] == "3"
    assert headers["x-generated-tokens"] == "4"
    for name in ("compute-time", "total-time", "queue-time", "inference-time", "time-per-token"):
        assert float(headers[f"x-{name}"]) >= 0


def test_the_models_end_token_is_shown_as_special_and_no_part_of_the_text(live: Live) -> None:
    live.behaviour.end_after = 3
    events = live.stream("abc")
    assert events[-1]["token"] == {"id": END_ID, "text": "<|end|>", "logprob": -0.375, "special": True}
    assert events[-1]["generated_text"] == "ab"
    assert events[-1]["details"]["finish_reason"] == "eos_token"


def test_a_stop_string_ends_the_engines_work(live: Live) -> None:
    live.behaviour.delay_s = 0.001
    answer = live.generate("abcdef", stop=["cd"], include_stop_str=False, details=True).json()
    assert answer["generated_text"] == "ab"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["generated_tokens"] == 4
    assert answer["details"]["timings"]["queue_ms"] == 1
    assert eventually(lambda: live.engine.num_aborted == 1)


def test_full_text_begins_with_the_prompt(live: Live) -> None:
    assert live.generate("abc", max_new_tokens=3, return_full_text=True).json()["generated_text"] == "abcabc"
    ids = live.tokenizer.encode("abc")
    assert live.generate(ids, max_new_tokens=1, return_full_text=True).json()["generated_text"] == "abca"
    assert live.stream("abc", max_new_tokens=1, return_full_text=True)[-1]["generated_text"] == "abca"


def test_the_compatibility_route_answers_a_list_or_a_stream(live: Live) -> None:
    assert live.generate("abc", "/", max_new_tokens=2).json() == [{"generated_text": "ab"}]
    for path in ("/", "/generate"):
        body = {"inputs": "abc", "stream": True, "parameters": {"max_new_tokens": 2}}
        assert parse_events(live.http.post(path, json=body).content)[-1]["generated_text"] == "ab"


def test_the_clients_of_tgi_work_unchanged(live: Live) -> None:
    client = InferenceClient(live.url)
    assert client.text_generation("abc", max_new_tokens=4) == "abca"
    whole = client.text_generation("abc", max_new_tokens=4, details=True, do_sample=True, seed=3, top_k=5)
    assert whole.details is not None
    assert (whole.details.seed, len(whole.details.tokens)) == (3, 4)
    assert list(client.text_generation(TEXT, max_new_tokens=12, stream=True)) == [
        event["token"]["text"] for event in live.stream(TEXT, max_new_tokens=12)
    ]
    live.behaviour.fail_after = 0
    with pytest.raises(GenerationError, match="the numbers went wrong"):
        client.text_generation("abc")


def test_a_failure_is_a_424_that_quotes_the_engine(live: Live) -> None:
    live.behaviour.fail_after = 0
    response = live.generate()
    assert response.status_code == 424
    assert response.json() == {"error": "the numbers went wrong", "error_type": "generation"}


def test_a_failure_in_mid_stream_is_the_last_event_and_loses_no_token(live: Live) -> None:
    live.behaviour.fail_after = 2
    events = live.stream("abc")
    assert [event["token"]["text"] for event in events[:2]] == ["a", "b"]
    assert events[2:] == [{"error": "the numbers went wrong", "error_type": "generation"}]


def test_a_bug_while_answering_ends_that_request_alone(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StreamText, "push", lambda text, token_id: 1 / 0)
        assert live.stream() == [{"error": "internal error", "error_type": "internal"}]
        assert live.generate().status_code == 500
    assert eventually(lambda: live.engine.num_aborted == 2)
    assert live.generate("abc", max_new_tokens=2).status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_a_full_queue_is_a_429_before_the_first_byte(path: str, live: Live) -> None:
    live.behaviour.is_overloaded = True
    response = live.generate("abc", path)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert response.json()["error_type"] == "overloaded"


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_an_engine_that_is_away_is_a_503_before_the_first_byte(path: str, live: Live) -> None:
    live.behaviour.is_unavailable = True
    response = live.generate("abc", path)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json() == {
        "error": "the server cannot take requests: draining",
        "error_type": "unavailable",
    }


def test_before_the_model_is_loaded_all_that_needs_it_is_a_503(live: Live) -> None:
    live.engine.info, info = None, live.engine.info
    live.behaviour.is_ready = False
    try:
        statuses = [live.generate().status_code, live.http.get("/info").status_code]
    finally:
        live.engine.info = info
    assert statuses == [503, 503]


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize("when", ["before the first token", "in mid-answer"])
def test_a_client_that_leaves_lets_go_of_its_stream(how: str, path: str, when: str, live: Live) -> None:
    live.behaviour.delay_s = 60 if when.startswith("before") else 0.005
    body = json.dumps({"inputs": "abc"}).encode()
    request = b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    connection = socket.create_connection(live.address)
    connection.sendall(request % (path.encode(), len(body), body))
    assert eventually(lambda: bool(live.engine.live))
    time.sleep(0.03)
    if how == "rst":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert eventually(lambda: not live.engine.live)
    assert live.engine.num_aborted == 1


def test_a_whole_answer_leaves_nothing_running_and_aborts_nothing(live: Live) -> None:
    live.generate(max_new_tokens=3)
    live.stream(max_new_tokens=3)
    time.sleep(0.05)
    assert (live.engine.live, live.engine.num_aborted) == (set(), 0)
