"""Strict JSON: decides which request bodies are JSON at all, and says in a sentence why one is not.

Knows nothing of fields, schemas or statuses.
"""

from __future__ import annotations

import json
from typing import NoReturn

MAX_DEPTH = 32  # arrays and objects inside one another
MAX_SHOWN = 100  # characters of a client's text in a message

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OPEN = ord("[")


class JsonError(ValueError):
    """The body is refused; the message is one sentence for the client."""


def parse_json(body: bytes) -> object:
    """The value of a JSON text (RFC 8259) in UTF-8.

    Stricter than `json.loads`: raises `JsonError` also for duplicate keys, NaN and Infinity, lone
    surrogates, a byte order mark, more than `MAX_DEPTH` levels, and integers too long for Python to read.
    A number with a fraction or an exponent beyond the doubles becomes an infinity, for a schema to refuse.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"the body is not valid UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise JsonError("the body starts with a byte order mark")
    _check_depth(body)
    try:
        value = json.loads(text, object_pairs_hook=_make_object, parse_constant=_refuse_constant)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(
            f"the body is not JSON: {error.msg.removesuffix(' at')} at character {error.pos}"
        ) from None
    except ValueError:  # from int(), which limits its digits because its time is quadratic in them
        raise JsonError("the body holds an integer with too many digits") from None
    if "\\u" in text:  # only an escape can smuggle half a surrogate pair in
        _check_surrogates(value)
    return value


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before the recursive parser sees it, in linear time.

    With the escapes gone every quote opens or closes a string, so each second part lies outside strings.
    """
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(unescaped.split(b'"')[::2])
    depth = 0
    for bracket in outside.translate(_BRACES_TO_BRACKETS, _NOT_BRACKETS):
        depth += 1 if bracket == _OPEN else -1
        if depth > MAX_DEPTH:
            raise JsonError(f"the body is nested deeper than {MAX_DEPTH} levels")


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"the key {json.dumps(key[:MAX_SHOWN])} occurs twice in one object")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"the body holds {name}, which is not a JSON number")


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise JsonError("a string in the body holds a lone surrogate") from None
