"""The tree of errors against the wire's table."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.errors import ERRORS, ApiError, Overloaded, Unavailable, shown


def test_statuses_and_kinds_are_those_of_the_wire() -> None:
    assert {error.status: error.error_type for error in ERRORS} == {
        400: "bad_request",
        401: "unauthorized",
        404: "not_found",
        405: "method_not_allowed",
        408: "request_timeout",
        413: "too_large",
        415: "unsupported_media_type",
        422: "validation",
        424: "generation",
        429: "overloaded",
        431: "headers_too_large",
        500: "internal",
        503: "unavailable",
    }
    assert len({error.status for error in ERRORS}) == len(ERRORS)


@pytest.mark.parametrize("error", ERRORS)
def test_the_tree_in_the_docstring_shows_each_leaf(error: type[ApiError]) -> None:
    (line,) = (line for line in str(errors.__doc__).splitlines() if f" {error.__name__} " in line)
    assert str(error.status) in line
    assert error.error_type in line


@pytest.mark.parametrize("kind", [Overloaded, Unavailable])
def test_retry_after_is_whole_seconds_and_never_zero(kind: type[Overloaded | Unavailable]) -> None:
    assert kind("later", 0.0).headers["Retry-After"] == "1"
    assert kind("later", 2.1).headers["Retry-After"] == "3"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_a_shown_value_is_short_printable_ascii(value: object) -> None:
    text = shown(value)
    assert len(text) <= errors.MAX_SHOWN_CHARS + 1
    assert all(" " <= character <= "~" for character in text.removesuffix("…"))


def test_a_short_string_is_shown_as_json() -> None:
    assert json.loads(shown('a"\n\u2028')) == 'a"\n\u2028'


def test_a_huge_integer_is_not_printed() -> None:
    assert shown(10**10_000) == "an integer of 33220 bits"
