"""The door, the names of requests, the probes, and errors that no route raises."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from server.middleware import MAX_HEADER_BYTES, MAX_HEADERS, OPEN_PATHS
from tests.server.live import Live, eventually, serve


@pytest.fixture(scope="module")
def guarded() -> Iterator[Live]:
    with serve(api_keys="right,second") as live:
        yield live


@pytest.mark.parametrize("path", ["/nothing", "/generate/", "/%00", "/v1", "/docs/x"])
def test_an_unknown_route_is_a_404(path: str, live: Live) -> None:
    response = live.http.get(path)
    assert response.status_code == 404
    assert response.json() == {"error": "there is no such route", "error_type": "not_found"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/", "POST"),
        ("PUT", "/info", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_that_says_which(method: str, path: str, allowed: str, live: Live) -> None:
    response = live.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json() == {
        "error": f"this route takes {allowed} alone",
        "error_type": "method_not_allowed",
    }


def test_a_bug_is_a_500_that_tells_nothing_and_a_traceback_in_the_log(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    response = live.http.get("/crash", headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert response.json() == {"error": "internal error", "error_type": "internal"}
    assert response.headers["x-request-id"] == "mine"
    (record,) = (record for record in caplog.records if record.name == "verbatim.error")
    assert record.exc_info


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128])
def test_a_valid_request_id_is_kept(given: str, live: Live) -> None:
    for path in ("/health", "/nothing"):
        assert live.http.get(path, headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [["x" * 129], ["a b"], ["a/b"], [""], ["a\u00e9"], ["a", "b"], []])
def test_any_other_request_id_is_replaced(given: list[str], live: Live) -> None:
    headers = [(b"x-request-id", value.encode()) for value in given]
    ids = [live.http.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert not set(ids) & set(given)
    assert len(ids[0]) == 32


def test_the_log_names_the_route_and_never_the_path(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="verbatim.access"):
        live.http.get("/secret-path?secret-query", headers={"x-request-id": "mine"})
        assert eventually(lambda: any(record.name == "verbatim.access" for record in caplog.records))
    (line,) = (record.getMessage() for record in caplog.records if record.name == "verbatim.access")
    assert line.startswith("other 404 ")
    assert line.endswith(" mine")
    assert "secret" not in caplog.text


def test_a_hundred_headers_are_taken_and_one_more_refused(live: Live) -> None:
    def send(num_headers: int) -> bytes:
        lines = [b"GET /health HTTP/1.1", b"host: a", b"connection: close"]
        lines += [b"x-%d: y" % index for index in range(num_headers - 2)]
        return live.raw(b"\r\n".join(lines) + b"\r\n\r\n").split(b" ")[1]

    assert send(MAX_HEADERS) == b"200"
    assert send(MAX_HEADERS + 1) == b"431"


def test_headers_over_the_limit_are_a_431(live: Live) -> None:
    response = live.http.get("/health", headers={"x-long": "y" * MAX_HEADER_BYTES})
    assert response.status_code == 431
    assert response.json()["error_type"] == "headers_too_large"
    assert live.http.get("/health", headers={"x-long": "y" * (MAX_HEADER_BYTES - 500)}).status_code == 200


@pytest.mark.parametrize("key", ["right", "second"])
def test_a_known_key_opens_the_door(key: str, guarded: Live) -> None:
    headers = {"authorization": f"Bearer {key}"}
    assert guarded.http.get("/info", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "given",
    [[], ["right"], ["Bearer"], ["Bearer wrong"], ["Basic right"], ["Bearer rightx"], ["Bearer righ"],
     ["Bearer right", "Bearer right"], ["Bearer r\u00efght"]],
)  # fmt: skip
def test_anything_else_is_a_401(given: list[str], guarded: Live) -> None:
    headers = [(b"authorization", value.encode()) for value in given]
    response = guarded.http.get("/info", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error_type"] == "unauthorized"


def test_every_route_but_the_probes_is_guarded(guarded: Live) -> None:
    schema = guarded.http.get("/openapi.json", headers={"authorization": "Bearer right"}).json()
    routes = [(method, path) for path, methods in schema["paths"].items() for method in methods]
    assert len(routes) >= 11
    for method, path in [
        *routes,
        ("get", "/docs"),
        ("get", "/openapi.json"),
        ("get", "/nothing"),
        ("put", "/"),
    ]:
        status = guarded.http.request(method, path).status_code
        assert (status == 401) != (path in OPEN_PATHS), path


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/ping"])
def test_readiness_follows_the_engine(path: str, live: Live) -> None:
    assert live.http.get(path).json() == {"status": "ready"}
    live.behaviour.is_ready = False
    response = live.http.get(path)
    assert response.status_code == 503
    assert response.json() == {"error": "loading", "error_type": "unavailable"}
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_a_probe_may_ask_for_the_head_alone(path: str, live: Live) -> None:
    response = live.http.head(path)
    assert (response.status_code, response.content) == (200, b"")
    live.behaviour.is_ready = live.behaviour.is_live = False
    response = live.http.head(path)
    assert (response.status_code, response.content) == (503, b"")


def test_liveness_does_not_ask_for_readiness(live: Live) -> None:
    live.behaviour.is_ready = False
    assert live.http.get("/health/live").status_code == 200
    live.behaviour.is_live = False
    assert live.http.get("/health/live").status_code == 503


def test_info_tells_the_model_and_the_limits(live: Live) -> None:
    info = live.http.get("/info").json()
    assert info["model_id"] == "fake"
    assert info["max_total_tokens"] == 512
    assert info["max_input_tokens"] == 511
    assert info["max_concurrent_requests"] == 32 + 256


def test_no_answer_opens_the_server_to_other_origins(live: Live) -> None:
    for response in (
        live.http.options("/generate", headers={"origin": "http://a"}),
        live.http.get("/health"),
    ):
        assert not any(name.startswith("access-control") for name in response.headers)


def test_the_page_of_the_reference_needs_no_other_host(live: Live) -> None:
    page = live.http.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert live.http.get(path).status_code == 200, path


def test_each_key_is_a_tenant_of_its_own(guarded: Live) -> None:
    guarded.reset()
    for key in ("second", "right", "second"):
        headers = {"authorization": f"Bearer {key}"}
        body = {"inputs": "abc", "parameters": {"max_new_tokens": 1}}
        assert guarded.http.post("/generate", json=body, headers=headers).status_code == 200
    assert [request.tenant for request in guarded.engine.requests] == [1, 0, 1]
