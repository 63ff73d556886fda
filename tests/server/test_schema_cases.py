"""What the OpenAPI document promises, tried: no 5xx, no other status, every answer in its shape."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.server.live import Live
from tests.server.schema_cases import Document, Request


@pytest.fixture(scope="module")
def document(server: Live) -> Document:
    return Document(server.http.get("/openapi.json").json())


@pytest.mark.no_cover
def test_every_answer_is_one_that_is_documented(server: Live, document: Document) -> None:
    seen: set[int] = set()

    @settings(max_examples=500)
    @given(document.requests())
    def holds(request: Request) -> None:
        response = server.http.send(request.build(server.http))
        document.check(request, response)
        seen.add(response.status_code)

    holds()
    assert seen >= {200, 400, 404, 405, 415, 422}  # or the requests drawn are not worth much
