"""Strict JSON, by the public test suite and by what hostile clients send."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.json_body import MAX_DEPTH, JsonError, parse_json

TWO_MIB = 2 * 1024 * 1024

# Valid by the letter of RFC 8259, and refused on purpose.
DUPLICATE_KEYS = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_the_json_test_suite_is_obeyed(shared_data: Path) -> None:
    cases = sorted((shared_data / "robustness/JSONTestSuite/test_parsing").glob("*.json"))
    assert len(cases) == 318
    for case in cases:
        try:
            parse_json(case.read_bytes())
        except JsonError:
            is_accepted = False
        else:
            is_accepted = True
        if case.name in DUPLICATE_KEYS or case.name.startswith("n_"):
            assert not is_accepted, case.name
        elif case.name.startswith("y_"):
            assert is_accepted, case.name


@given(json_values, st.booleans(), st.sampled_from([None, 2]))
def test_every_json_value_is_read_as_it_was_written(
    value: object, ensure_ascii: bool, indent: int | None
) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode()) == value


@given(st.binary() | st.text(alphabet='[]{}":,\\u0d8e1.-tfn ').map(str.encode))
def test_any_bytes_parse_or_raise_json_error(body: bytes) -> None:
    with suppress(JsonError):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"[1] 2", "not JSON: Extra data at character 4"),
        (b'"a\nb"', "Invalid control character at character 2"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'"\xed\xa0\x80"', "not valid UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (rb'"\ud800"', "lone surrogate"),
        (rb'"\udc00\ud800"', "lone surrogate"),
        (rb'{"\uD83D": 1}', "lone surrogate"),
        (rb'{"a": [{"b": "\\\ud800"}]}', "lone surrogate"),
        (b"9" * 4301, "too many digits"),
    ],
)
def test_what_is_refused_is_told_why(body: bytes, reason: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(body)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\\ud800"', r"\ud800"),
        (b"9" * 4300, 10**4300 - 1),
        (b"1e999", math.inf),
        (b'{"a": {"a": 1}}', {"a": {"a": 1}}),
    ],
)
def test_near_misses_are_accepted(body: bytes, value: object) -> None:
    assert parse_json(body) == value


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', '"a"'),
        (rb'[{"b": {"\u0061": 1, "a": 2}}]', '"a"'),
        ('{"é\\n": 1, "é\\n": 2}'.encode(), r'"\u00e9\n"'),
        (b'{"%s": 1, "%s": 2}' % (b"x" * 300, b"x" * 300), '"' + "x" * 100 + '" '),
    ],
)
def test_a_duplicate_key_is_named_cut_and_escaped(body: bytes, key: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(body)
    assert f"the key {key}" in str(caught.value)


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}"), ('[{"\\"[":', "}]")])
def test_depth_is_limited_exactly(start: str, end: str) -> None:
    levels = start.count("[") + start.count("{") - start.count('"[')
    deepest = MAX_DEPTH // levels
    parse_json((start * deepest + "1" + end * deepest).encode())
    with pytest.raises(JsonError, match="deeper than 32"):
        parse_json((start * (deepest + 1) + "1" + end * (deepest + 1)).encode())


@pytest.mark.parametrize("text", ["[" * 100, "{" * 100, r"\"" + "[" * 100, "\\" * 3 + '"' + "[" * 100])
def test_brackets_in_strings_are_no_levels(text: str) -> None:
    value = {text: [text, "\\", text]}
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "unit", [b"[", b'{"a":', b'"', b'\\"', b"\\", b'["\\"', b"[]", b"{", b"]", b"9", b"-", b" ", b'"a":{']
)
@pytest.mark.parametrize("start", [b"", b'"', b'["'])
def test_two_mib_of_malice_are_refused_in_linear_time(start: bytes, unit: bytes) -> None:
    body = start + unit * (TWO_MIB // len(unit))
    with pytest.raises(
        JsonError
    ):  # in less than 0.1 s; quadratic time would take minutes, past the test's limit
        parse_json(body)
