"""Heads that are slow, long or no HTTP, and what one request leaves to the next on its connection."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.protocol import MAX_HEAD_BYTES
from tests.server.live import Live, eventually, flood, post, prompt, serve, statuses, until_closed

GET = b"GET /health HTTP/1.1\r\nhost: a\r\n"
LAST_GET = GET + b"connection: close\r\n\r\n"
JSON = "application/json"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Live]:
    with serve(header_timeout_s=0.3) as live:
        yield live


def trickle(live: Live, first: bytes, piece: bytes) -> bytes:
    """What the server says to a sender of a piece every 50 ms until it closes; fails if it never does."""
    answer = b""
    with socket.create_connection(live.address) as connection:
        connection.sendall(first)
        connection.settimeout(0.05)
        for _ in range(400):
            try:
                chunk = connection.recv(4096)
                if not chunk:
                    return answer
                answer += chunk
            except TimeoutError:
                connection.sendall(piece)
    raise AssertionError("still open after 20 s")


@pytest.mark.parametrize("piece", [b"x", b"x: y\r\n"])
def test_headers_that_never_end_are_a_408(piece: bytes, impatient: Live) -> None:
    answer = trickle(impatient, GET, piece)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error_type": "request_timeout"' in answer


def test_a_socket_that_stays_silent_is_closed_without_a_word(impatient: Live) -> None:
    answer = trickle(impatient, b"", b"")
    assert answer == b""


def test_the_second_request_of_a_connection_has_the_same_deadline(impatient: Live) -> None:
    answer = trickle(impatient, GET + b"\r\n", b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


def test_a_slow_answer_is_no_slow_request(impatient: Live) -> None:
    impatient.behaviour.delay_s = 0.2
    assert impatient.generate(max_new_tokens=4).status_code == 200


def test_a_head_without_end_is_a_431_before_it_is_held(live: Live) -> None:
    answer = live.raw(GET + b"x: " + b"y" * (2 * MAX_HEAD_BYTES), is_half=True)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"error_type": "headers_too_large"' in answer


@pytest.mark.parametrize(
    "request_bytes", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n"]
)
def test_what_is_not_http_is_a_400_in_the_documented_shape(request_bytes: bytes, live: Live) -> None:
    answer = live.raw(request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error": "the request is not valid HTTP/1.1", "error_type": "bad_request"}' in answer
    assert b"x-request-id: " in answer


def post_chunked(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """The bytes of a request that waits for its answer's end, in one chunk and what follows it."""
    head = b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n%b" % (len(body), body, end)


@contextmanager
def streaming(live: Live) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection on which a stream has begun that would take minutes, and what came of it."""
    live.behaviour.delay_s = 0.5
    with socket.create_connection(live.address, timeout=30) as connection:
        connection.sendall(post("/generate_stream", prompt(400)))
        seen = b""
        while b"id: 1\n" not in seen:
            seen += connection.recv(65536)
        yield connection, seen


@pytest.mark.parametrize(
    ("path", "num_bytes", "media_type", "status"),
    [
        ("/generate", 300_000, "text/plain", 415),
        ("/generate", 3_000_000, "text/plain", 415),
        ("/generate", 3_000_000, JSON, 413),
        ("/nowhere", 300_000, JSON, 404),
        ("/health", 300_000, JSON, 405),
    ],
)
def test_a_refused_body_does_not_spoil_the_next_request(
    path: str, num_bytes: int, media_type: str, status: int, live: Live
) -> None:
    answer = live.raw(post(path, b"x" * num_bytes, media_type) + LAST_GET)
    assert statuses(answer) == [status, 200]


def test_the_rest_of_a_refused_body_may_come_after_the_answer(live: Live) -> None:
    request = post("/generate", b"x" * 1_000_000, "text/plain")
    with socket.create_connection(live.address, timeout=30) as connection:
        connection.sendall(request[:1000])
        answer = connection.recv(65536)
        connection.sendall(request[1000:] + LAST_GET)
        answer += until_closed(connection)
    assert statuses(answer) == [415, 200]


def test_a_refused_body_that_never_ends_is_closed_without_a_second_answer(impatient: Live) -> None:
    answer = trickle(impatient, post("/generate", b"x" * 10**6, "text/plain")[:1000], b"x")
    assert statuses(answer) == [415]


def test_a_connection_is_not_kept_for_ever_behind_a_refused_body(impatient: Live) -> None:
    request = post("/generate", b"x" * 1000, "text/plain")
    with socket.create_connection(impatient.address, timeout=30) as connection:
        connection.sendall(request[:500])
        answer = connection.recv(65536)
        connection.sendall(request[500:])
        answer += until_closed(connection)
    assert statuses(answer) == [415]


def test_what_is_wrong_in_the_rest_of_a_refused_body_gets_no_second_answer(live: Live) -> None:
    request = post_chunked(b"x").replace(b"connection: close\r\n", b"").replace(b"/generate", b"/nowhere")
    with socket.create_connection(live.address, timeout=30) as connection:
        connection.sendall(request.removesuffix(b"0\r\n\r\n"))
        answer = connection.recv(65536)
        connection.sendall(b"no size\r\n")
        answer += until_closed(connection)
    assert statuses(answer) == [404]


def test_a_client_that_holds_its_body_back_hears_that_the_connection_ends(live: Live) -> None:
    request = post("/generate", b"x" * 9, "text/plain", "expect: 100-continue\r\n")
    answer = live.raw(request.removesuffix(b"x" * 9))
    assert statuses(answer) == [415]
    assert b"connection: close\r\n" in answer


def test_a_body_is_no_head_however_long_it_and_the_next_head_are(live: Live) -> None:
    body = prompt(1).ljust(1_000_000)
    head = GET + b"connection: close\r\nx: " + b"y" * 30_000 + b"\r\n\r\n"
    answer = live.raw(post("/generate", body) + head)
    assert statuses(answer) == [200, 200]


def test_requests_in_one_piece_are_answered_in_turn(live: Live) -> None:
    answer = live.raw((GET + b"\r\n") * 3 + post("/generate", prompt(2)) + post("/nowhere", b"") + LAST_GET)
    assert statuses(answer) == [200, 200, 200, 200, 404, 200]


OFFER = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
SMUGGLED = b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("is_split", [False, True])
def test_the_body_of_a_request_that_offers_an_upgrade_is_its_body(
    *, is_split: bool, is_chunked: bool, live: Live
) -> None:
    # Taken for what follows the request, it would be lost, or pass for the next one.
    head, body = post("/generate", prompt(2), header=OFFER).split(b"\r\n\r\n")
    smuggling, _ = post("/generate", SMUGGLED, header=OFFER).split(b"\r\n\r\n", 1)
    requests = [(head, body), (smuggling, SMUGGLED), (GET.strip() + b"\r\n" + OFFER.encode().strip(), b"")]
    with socket.create_connection(live.address, timeout=5) as connection:
        for start, rest in requests:
            if is_chunked and rest:
                start = start.replace(b"content-length: %d" % len(rest), b"transfer-encoding: chunked")
                rest = b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest)
            connection.sendall(start + b"\r\n\r\n" + (b"" if is_split else rest))
            if is_split:
                time.sleep(0.02)
                connection.sendall(rest)
        connection.sendall(LAST_GET)
        assert statuses(until_closed(connection)) == [200, 400, 200, 200]


@pytest.mark.parametrize("head", [GET + b"x: ", b"GET /", GET + b"x"], ids=["value", "target", "name"])
def test_a_head_without_end_behind_a_stream_cuts_the_connection(head: bytes, live: Live) -> None:
    with streaming(live) as (connection, answer):
        connection.sendall(head)
        num_sent = flood(connection, max_bytes=300_000_000)
        answer += until_closed(connection)
        assert eventually(lambda: live.engine.num_aborted == 1)
    assert num_sent < 50_000_000  # what the kernel's buffers take, on both sides
    assert statuses(answer) == [200]


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02", b"GET\r\n\r\n", GET + b": x\r\n\r\n"])
def test_garbage_behind_a_stream_cuts_it_and_adds_nothing(garbage: bytes, live: Live) -> None:
    with streaming(live) as (connection, answer):
        connection.sendall(garbage)
        answer += until_closed(connection)
        assert eventually(lambda: live.engine.num_aborted == 1)
    assert statuses(answer) == [200]
    assert b"bad_request" not in answer


def test_a_good_request_behind_a_stream_waits_for_its_turn(live: Live) -> None:
    answer = live.raw(post("/generate_stream", prompt(3)) + LAST_GET)
    assert statuses(answer) == [200, 200]
    assert answer.index(b"id: 3\n") < answer.rindex(b"HTTP/1.1 ")


def test_garbage_behind_a_request_without_answer_gets_one_answer(live: Live) -> None:
    live.behaviour.delay_s = 0.1
    answer = live.raw(post("/generate", prompt(10)) + b"\x16\x03\x01\x02")
    assert statuses(answer) == [400]


@pytest.mark.parametrize("end", [b"0\r\n", b"0\r\nx: "], ids=["many", "long"])
def test_trailers_without_end_are_a_431(end: bytes, live: Live) -> None:
    with socket.create_connection(live.address, timeout=30) as connection:
        connection.sendall(post_chunked(prompt(1), end))
        connection.sendall(b"x: y\r\n" * MAX_HEAD_BYTES if end == b"0\r\n" else b"y" * (5 * MAX_HEAD_BYTES))
        answer = until_closed(connection)
    assert statuses(answer) == [431]


def test_a_chunked_body_with_trailers_is_served(live: Live) -> None:
    assert statuses(live.raw(post_chunked(prompt(1), b"0\r\nx: y\r\n\r\n"))) == [200]


def test_a_chunk_without_a_size_is_one_400(live: Live) -> None:
    assert statuses(live.raw(post_chunked(prompt(1), b"no size\r\n"))) == [400]


def test_a_refusal_is_one_line_of_the_log_without_the_clients_text(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="verbatim.access"):
        answer = live.raw(b"SECRET\r\n\r\n")
        assert eventually(lambda: any(record.name == "verbatim.access" for record in caplog.records))
    # The request that the test before this one broke off may end its line here.
    (record,) = (record for record in caplog.records if vars(record).get("route") == "other")
    assert record.getMessage().startswith("other 400 ")
    assert vars(record)["request_id"].encode() in answer
    assert "SECRET" not in caplog.text
