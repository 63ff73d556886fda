"""The published document against the server that publishes it."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import ERRORS
from tests.server.live import Live, serve

REFERENCE = "#/components/schemas/"


@pytest.fixture
def document(live: Live) -> dict[str, Any]:
    schema: dict[str, Any] = live.http.get("/openapi.json").json()
    return schema


def references(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].removeprefix(REFERENCE)} if "$ref" in node else set()
        return own.union(*(references(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(references(child) for child in node))
    return set()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert references(document) <= document["components"]["schemas"].keys()
    assert document["info"]["title"] == "Verbatim"


def test_every_body_is_described_and_required(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert ("requestBody" in operation) == (method == "post"), path
            if method == "post":
                assert operation["requestBody"]["required"]


def test_every_error_has_the_documented_shape(document: dict[str, Any]) -> None:
    known = {str(error.status) for error in ERRORS}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            errors = operation["responses"].keys() - {"200"}
            assert errors <= known, path
            assert "500" in errors
            for status in errors:
                content = operation["responses"][status]["content"]
                assert content["application/json"]["schema"] == {"$ref": f"{REFERENCE}ErrorAnswer"}


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_generating_may_answer_with_every_status_that_it_has(path: str, document: dict[str, Any]) -> None:
    responses = document["paths"][path]["post"]["responses"]
    expected = {"400", "401", "408", "413", "415", "422", "424", "429", "431", "500", "503"}
    assert responses.keys() == {"200"} | expected
    content = responses["200"]["content"]
    events = [{"$ref": f"{REFERENCE}{name}"} for name in ("StreamEvent", "ErrorAnswer")]
    assert content["text/event-stream"]["schema"] == {"anyOf": events}
    assert ("application/json" in content) == (path != "/generate_stream")


def test_unknown_fields_are_documented_as_refused(document: dict[str, Any]) -> None:
    for name in ("GenerateBody", "GenerateParameters", "TokenizeBody", "DetokenizeBody"):
        assert document["components"]["schemas"][name]["additionalProperties"] is False
    bounds = document["components"]["schemas"]["GenerateParameters"]["properties"]["top_n_tokens"]["anyOf"][0]
    assert bounds == {"type": "integer", "minimum": 0, "maximum": 20}


def test_the_bounds_of_the_tokenizers_routes_are_documented(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["TokenizeBody"]["properties"]["inputs"]["maxLength"] == 65_536
    assert schemas["DetokenizeBody"]["properties"]["ids"]["maxItems"] == 65_536


def test_the_page_for_people_is_there(live: Live) -> None:
    assert live.http.get("/docs").status_code == 200


def test_the_document_says_which_routes_need_a_key(document: dict[str, Any]) -> None:
    assert "security" not in document
    with serve(api_keys="right") as guarded:
        own = guarded.http.get("/openapi.json", headers={"authorization": "Bearer right"}).json()
        (scheme,) = own["security"]
        assert own["components"]["securitySchemes"].keys() == scheme.keys()
        for path, methods in own["paths"].items():
            for method, operation in methods.items():
                is_refused = guarded.http.request(method, path).status_code == 401
                assert (operation.get("security") != []) == is_refused, path
