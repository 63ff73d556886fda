"""Requests drawn from the published OpenAPI document, right and wrong, and what every answer must be.

Knows the document and nothing of how the server reads a body: what is documented is what is tried and held.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import httpx
from hypothesis import strategies as st
from pydantic import TypeAdapter

from server.api.answers import (
    DetokenizeAnswer,
    ErrorAnswer,
    GenerateAnswer,
    StatusAnswer,
    StreamEvent,
    TextToken,
)
from server.api.info import InfoAnswer
from tests.server.live import parse_events

EDGES: Final[tuple[object, ...]] = (
    *(-(2**63), -1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, 1.5, -0.0, 1e-320, 1.7e308),
    *("", "1", "nan", "a" * 300, "\0", "\u2028", "é" * 200, True, False, None, [], {}, [[[[]]]], {"": None}),
)
LITERALS: Final = ("NaN", "-Infinity", "1e400", "-1e999", '"\\ud800"', "01", "'a'", "[,]", '{"a":1,"a":2}')
ANSWERS: Final[TypeAdapter[Any]] = TypeAdapter(
    GenerateAnswer | list[GenerateAnswer] | list[TextToken] | DetokenizeAnswer | InfoAnswer | StatusAnswer
)
EVENTS: Final[TypeAdapter[Any]] = TypeAdapter(list[StreamEvent | ErrorAnswer])
MAX_NEW_TOKENS: Final = 8  # or most of the time would go to long answers

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
wrong_values = st.sampled_from(EDGES) | json_values


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """For either client to send."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers]
        return http.build_request(self.method, self.path, content=self.body, headers=headers)


class Document:
    """The document, as a source of requests and a judge of answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas = document["components"]["schemas"]
        self._operations = {
            (method.upper(), path): operation
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }

    def requests(self) -> st.SearchStrategy[Request]:
        """Most of them to routes that take a body, with one field in eight drawn from what is wrong."""
        known = st.one_of(*(self._posts(path) for method, path in self._operations if method == "POST"))
        other = st.builds(
            Request,
            st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"]),
            st.sampled_from(sorted({path for _, path in self._operations})) | st.just("/nowhere"),
            st.binary(max_size=20),
            _headers(),
        )
        return st.one_of(known, known, known, known, other)

    def check(self, request: Request, response: httpx.Response, *, is_stormy: bool = False) -> None:
        """Fail for a status that is not documented, or an answer without its documented shape.

        is_stormy: the engine may be down for a moment.
        """
        status = response.status_code
        operation = self._operations.get((request.method, request.path))
        documented = operation["responses"].keys() if operation else {"400", "401", "404", "405", "431"}
        is_probed = request.method == "HEAD" and status == 200
        assert str(status) in documented or is_probed, (request, status, response.text)
        assert status < 500 or (is_stormy and status == 503), (request, response.text)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", response.headers["x-request-id"]), request
        if request.method == "HEAD":
            assert not response.content
        elif status != 200:
            ErrorAnswer.model_validate_json(response.content)
        elif response.headers["content-type"].startswith("text/event-stream"):
            EVENTS.validate_python(parse_events(response.content))
        elif response.headers["content-type"].startswith("application/json"):
            ANSWERS.validate_json(response.content)

    def _posts(self, path: str) -> st.SearchStrategy[Request]:
        schema = self._operations["POST", path]["requestBody"]["content"]["application/json"]["schema"]
        generates = "parameters" in self._schemas[schema["$ref"].rpartition("/")[2]]["properties"]
        bodies = (self._values(schema).map(_short) if generates else self._values(schema)).map(_encode)
        spoilt = st.tuples(bodies, st.sampled_from(LITERALS), st.integers(0, 2**16)).map(_spoil)
        return st.builds(
            Request,
            st.just("POST"),
            st.just(path),
            st.one_of(*[bodies] * 4, spoilt, json_values.map(_encode), st.binary(max_size=40)),
            _headers(),
        )

    def _values(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self._values(self._schemas[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return st.one_of(*(self._values(part) for part in schema["anyOf"]))
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "const" in schema:
            return st.just(schema["const"])
        match schema.get("type"):
            case "object":
                return self._objects(schema)
            case "array":
                return st.lists(self._values(schema["items"]), max_size=min(4, schema.get("maxItems", 4)))
            case "integer":
                least, most = schema.get("minimum", 0), schema.get("maximum", 2**63)
                return st.integers(least, most) | st.integers(least, min(most, 300))
            case "number":
                return st.floats(
                    schema.get("minimum", schema.get("exclusiveMinimum", -1e6)),
                    schema.get("maximum", 1e6),
                    exclude_min="exclusiveMinimum" in schema,
                )
            case "string":
                return st.text(
                    min_size=schema.get("minLength", 0), max_size=min(20, schema.get("maxLength", 20))
                )
            case "boolean":
                return st.booleans()
            case "null":
                return st.none()
        return json_values

    def _objects(self, schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        if "properties" not in schema:
            patterns = schema.get("patternProperties", {})
            values = self._values(next(iter(patterns.values()), {}))
            keys = st.integers(0, 300).map(str) if patterns else st.text(max_size=5)
            return st.dictionaries(keys, values, max_size=3)
        fields = {name: self._values(part) for name, part in schema["properties"].items()}
        odd = st.dictionaries(st.sampled_from(sorted(fields)) | st.text(max_size=8), wrong_values, max_size=1)
        names = st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=5)
        needed = schema.get("required", ["inputs"] if "inputs" in fields else [])

        def build(chosen: list[str]) -> st.SearchStrategy[dict[str, Any]]:
            return st.fixed_dictionaries({name: fields[name] for name in {*needed, *chosen}})

        right = names.flatmap(build)
        return st.one_of(right, right, right, st.tuples(right, odd).map(lambda pair: pair[0] | pair[1]))


def _headers() -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    media = st.sampled_from(["application/json"] * 12 + ["application/json; charset=x", "text/plain", ""])
    letters = st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f")
    ids = st.text(letters, max_size=140).map(lambda text: ("x-request-id", text))
    rest = st.lists(ids, max_size=2)
    return st.tuples(media, rest).map(lambda pair: (("content-type", pair[0]), *pair[1]))


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def _short(body: Any) -> Any:
    """The same body, or one that asks for few tokens in place of many or of what fits."""
    parameters = body.get("parameters") or {} if isinstance(body, dict) else None
    if not isinstance(parameters, dict):
        return body
    wanted = parameters.get("max_new_tokens")
    is_long = wanted is None or (type(wanted) is int and MAX_NEW_TOKENS < wanted < 512)
    return body | {"parameters": parameters | {"max_new_tokens": MAX_NEW_TOKENS}} if is_long else body


def _spoil(drawn: tuple[bytes, str, int]) -> bytes:
    body, literal, place = drawn
    colons = [match.end() for match in re.finditer(rb": ", body)] or [0]
    at = colons[place % len(colons)]
    return body[:at] + literal.encode() + body[at:].lstrip(b'0123456789.-+e"truefalsn')
