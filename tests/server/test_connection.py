"""Clients that do not take, do not send, do not leave, or are too many; on both event loops."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, cast, get_args

import pytest

from server import connection as connections
from server.connection import LINGER_BYTES, SEND_BUFFER_BYTES, Connection, affordable_connections
from server.metrics import DropReason
from server.middleware import MAX_PIECE_BYTES, InPieces
from server.protocol import MAX_HEAD_BYTES, MAX_PIPELINED
from tests.server.live import Live, eventually, flood, post, prompt, serve, statuses, until_closed

GET = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
LAST_GET = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
DROPPED = 'verbatim_dropped_connections_total{{reason="{}"}}'

# Far more than every buffer between the two ends holds.
LONG = prompt(500, top_n_tokens=20, details=True)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def impatient_server(request: pytest.FixtureRequest) -> Iterator[Live]:
    loop: Literal["asyncio", "uvloop"] = request.param
    with serve(loop, write_timeout_s=0.5, max_connections=64) as live:
        yield live


@pytest.fixture
def impatient(impatient_server: Live) -> Live:
    impatient_server.reset()
    return impatient_server


@contextmanager
def unread(live: Live, request: bytes) -> Iterator[socket.socket]:
    """A connection that has sent a request, whose kernel takes next to nothing of the answer."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(live.address)
        client.sendall(request)
        yield client


def open_connections(live: Live) -> set[Connection]:
    """What the server holds open now."""
    return cast("set[Connection]", live.server.server_state.connections).copy()


def cut_off(client: socket.socket, num_bytes: int) -> None:
    """Read this many bytes now and then, and return when the connection is reset."""
    with suppress(ConnectionResetError):
        while not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            assert not num_bytes or client.recv(num_bytes), "the answer ended"
            time.sleep(0.01)


def server_side(live: Live, client: socket.socket) -> Connection:
    """The server's end of the client's connection."""
    found: list[Connection] = []

    def look() -> bool:
        found[:] = [end for end in open_connections(live) if end.client == client.getsockname()]
        return bool(found)

    assert eventually(look)
    return found[0]


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
@pytest.mark.parametrize("num_bytes", [0, 1], ids=["nothing", "byte by byte"])
def test_a_reader_that_does_not_take_its_answer_is_cut_off_and_counted(
    path: str, num_bytes: int, impatient: Live, caplog: pytest.LogCaptureFixture
) -> None:
    before = impatient.series()
    with (
        caplog.at_level(logging.INFO, logger="verbatim.access"),
        unread(impatient, post(path, LONG)) as client,
    ):
        end = server_side(impatient, client)
        assert eventually(lambda: end.flow.write_paused)
        assert impatient.generate(max_new_tokens=3).status_code == 200  # nobody else notices
        cut_off(client, num_bytes)
    assert eventually(lambda: not impatient.engine.live)
    assert impatient.series()[DROPPED.format("slow_reader")] - before[DROPPED.format("slow_reader")] == 1
    assert [record.getMessage() for record in caplog.records].count("dropped slow_reader") == 1


def test_a_reader_that_takes_nothing_costs_two_small_buffers(impatient: Live) -> None:
    with unread(impatient, post("/generate_stream", LONG)) as client:
        end = server_side(impatient, client)
        assert eventually(lambda: end.flow.write_paused)
        assert end.transport.get_write_buffer_size() <= MAX_PIECE_BYTES + 1024
        kernel = end.transport.get_extra_info("socket")
        assert kernel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER_BYTES


def test_the_kernel_looks_for_peers_that_are_gone_without_a_word(impatient: Live) -> None:
    with unread(impatient, GET) as client:
        client.recv(100)
        kernel = server_side(impatient, client).transport.get_extra_info("socket")
        assert kernel.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000
            assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system gives nobody up")
def test_a_client_that_the_system_gave_up_is_counted(
    impatient: Live, caplog: pytest.LogCaptureFixture
) -> None:
    before = impatient.series()[DROPPED.format("timed_out")]
    impatient.behaviour.delay_s = 0.02  # the client's buffer is soon full, and ours long not
    with (
        caplog.at_level(logging.INFO, logger="verbatim.access"),
        unread(impatient, post("/generate_stream", prompt(500))) as client,
    ):
        end = server_side(impatient, client)
        assert eventually(lambda: end not in open_connections(impatient))
    assert eventually(lambda: impatient.engine.num_aborted == 1)
    assert impatient.series()[DROPPED.format("timed_out")] - before == 1
    assert [record.getMessage() for record in caplog.records].count("dropped timed_out") == 1


def test_a_client_that_we_and_the_system_give_up_at_once_is_counted_once(
    impatient: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = impatient.series()
    with unread(impatient, GET) as client:
        client.recv(100)
        end = server_side(impatient, client)
        lost = end.connection_lost
        monkeypatch.setattr(end, "connection_lost", lambda _: lost(OSError(errno.ETIMEDOUT, "")))
        end.loop.call_soon_threadsafe(end.drop, "slow_reader")
        assert eventually(lambda: end not in open_connections(impatient))
    after = impatient.series()
    rises = [
        after[DROPPED.format(reason)] - before[DROPPED.format(reason)] for reason in get_args(DropReason)
    ]
    assert sorted(rises) == [0, 0, 0, 1]


@pytest.mark.parametrize("num_bytes", [0, 1, MAX_PIECE_BYTES, MAX_PIECE_BYTES + 1, 5 * MAX_PIECE_BYTES])
@pytest.mark.parametrize("more", [True, False])
def test_an_answer_goes_out_in_small_pieces(num_bytes: int, more: bool) -> None:
    body = bytes(i % 251 for i in range(num_bytes))
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(InPieces(app)({"type": "http"}, cast(Any, None), send))
    pieces = sent[1:]
    assert b"".join(piece["body"] for piece in pieces) == body
    assert all(len(piece["body"]) <= MAX_PIECE_BYTES for piece in pieces)
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [more]


@pytest.mark.parametrize("status", [413, 415, 404])
def test_a_refusal_that_closes_reaches_a_client_that_is_still_sending(status: int, impatient: Live) -> None:
    path, media_type = ("/nowhere" if status == 404 else "/generate"), "text/plain" if status == 415 else None
    request = post(path, b"x" * 3_000_000, media_type or "application/json", "connection: close\r\n")
    for _ in range(10):
        with socket.create_connection(impatient.address, timeout=30) as client:
            client.sendall(request)
            time.sleep(0.02)  # the answer is there, and what came after it was sent
            answer = b""
            while chunk := client.recv(65536):  # a reset would raise
                answer += chunk
        assert statuses(answer) == [status]


@pytest.mark.parametrize("head", [b"x" * 3 * MAX_HEAD_BYTES, b"\x16\x03" + b"x" * 3_000_000])
def test_a_refusal_below_the_application_reaches_its_client_and_is_counted(
    head: bytes, impatient: Live
) -> None:
    status, kind = (400, "bad_request") if head.startswith(b"\x16") else (431, "headers_too_large")
    route, error = (
        f'verbatim_http_requests_total{{route="other",status="{status}"}}',
        f'verbatim_errors_total{{error_type="{kind}"}}',
    )
    before = impatient.series()
    with socket.create_connection(impatient.address, timeout=30) as client:
        client.sendall(GET.removesuffix(b"\r\n") + b"x: " + head if status == 431 else head)
        answer = client.recv(65536)
        assert client.recv(65536) == b""
    assert statuses(answer) == [status]
    after = impatient.series()
    assert after[route] - before.get(route, 0) == 1
    assert after[error] - before[error] == 1


def test_what_is_thrown_away_after_the_last_answer_is_bounded(impatient: Live) -> None:
    with socket.create_connection(impatient.address, timeout=30) as client:
        client.sendall(post("/nowhere", b"x" * 100, header="connection: close\r\n")[:-100])
        assert statuses(client.recv(65536)) == [404]
        assert flood(client, max_bytes=100 * LINGER_BYTES) < 10 * LINGER_BYTES  # and the kernel's buffers


def test_a_client_that_stays_after_the_last_answer_is_closed(
    impatient: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 0.1)
    with socket.create_connection(impatient.address, timeout=30) as client:
        client.sendall(post("/nowhere", b"x" * 100, header="connection: close\r\n")[:-100])
        end = server_side(impatient, client)
        until_closed(client)
        assert eventually(lambda: end not in open_connections(impatient))


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
def test_a_client_that_leaves_with_a_request_behind_its_answer_is_noticed(path: str, impatient: Live) -> None:
    impatient.behaviour.delay_s = 0.5  # minutes in all
    with socket.create_connection(impatient.address, timeout=30) as client:
        client.sendall(post(path, prompt(400)))
        assert eventually(lambda: len(impatient.engine.live) == 1)
        client.sendall(GET)
        end = server_side(impatient, client)
        assert eventually(lambda: bool(end.pipeline))
    assert eventually(lambda: impatient.engine.num_aborted == 1)


def test_so_many_requests_may_be_sent_ahead_and_no_more(impatient: Live) -> None:
    answer = impatient.raw(GET * MAX_PIPELINED + LAST_GET)
    assert statuses(answer) == [200] * (MAX_PIPELINED + 1)
    impatient.behaviour.delay_s = 0.5
    with socket.create_connection(impatient.address, timeout=30) as client:
        client.sendall(post("/generate", prompt(400)) + GET * (MAX_PIPELINED + 1))
        assert until_closed(client) == b""
    assert impatient.series()[DROPPED.format("broken_request")] > 0


def test_when_connections_are_too_many_the_idle_ones_go_and_newcomers_are_served(impatient: Live) -> None:
    impatient.behaviour.delay_s = 0.02
    most = 64
    with ExitStack() as stack:
        streaming = stack.enter_context(socket.create_connection(impatient.address, timeout=30))
        streaming.sendall(post("/generate_stream", prompt(100), header="connection: close\r\n"))
        answer = streaming.recv(65536)
        for _ in range(3 * most):
            stack.enter_context(socket.create_connection(impatient.address, timeout=30))
        assert statuses(impatient.raw(LAST_GET)) == [200]
        assert len(open_connections(impatient)) <= most
        answer += until_closed(streaming)
    assert b"id: 100\n" in answer
    assert impatient.series()[DROPPED.format("too_many_connections")] >= most


def test_a_thousand_slow_senders_are_closed_and_a_good_client_is_served() -> None:
    num_slow = 1000
    affordable_connections(2 * num_slow + 200)  # both ends are this process's
    with serve(header_timeout_s=2.0, body_timeout_s=2.0, write_timeout_s=2.0) as live, ExitStack() as stack:
        openings = [b"", GET[:20], post("/generate", b"x" * 99)[:-50]]
        clients = []
        for index in range(num_slow):
            client = stack.enter_context(socket.create_connection(live.address, timeout=30))
            client.sendall(openings[index % len(openings)])
            clients.append(client)
        assert len(live.stream(max_new_tokens=20)) == 20
        for client in clients:
            until_closed(client)
        assert len(live.stream(max_new_tokens=20)) == 20
        assert eventually(lambda: len(open_connections(live)) <= 1)
        assert live.series()["verbatim_open_connections"] <= 1


STARVED = """
import resource, sys
from tests.server.live import serve
with serve("{loop}") as live:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    print(live.address[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_without_descriptors_serves_again_when_it_has_some(loop: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STARVED.format(loop=loop)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        with ExitStack() as stack:
            for _ in range(60):
                client = stack.enter_context(socket.create_connection(address, timeout=30))
                client.sendall(GET[:10])

        def is_served() -> bool:  # not at once: the others' descriptors must be free again
            with suppress(OSError), socket.create_connection(address, timeout=30) as client:
                client.sendall(LAST_GET)
                return statuses(until_closed(client)) == [200]
            return False

        assert eventually(is_served)


@pytest.mark.parametrize(
    ("limits", "wanted", "granted", "soft"),
    [
        ((1024, 4096), 100, 100, 1024),
        ((1024, 4096), 2000, 2000, 2064),
        ((1024, 4096), 9000, 4032, 4096),
        ((1024, resource.RLIM_INFINITY), 9000, 9000, 9064),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 9000, 9000, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_on_open_files_is_raised_as_far_as_it_goes(
    limits: tuple[int, int], wanted: int, granted: int, soft: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = list(limits)

    def set_limits(_: int, new: tuple[int, int]) -> None:
        now[:] = new

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    assert affordable_connections(wanted) == granted
    assert now == [soft, limits[1]]
