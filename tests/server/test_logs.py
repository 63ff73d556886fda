"""Log lines: one JSON object each for machines, readable for people, tracebacks kept in both."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from server import logs


@pytest.fixture(autouse=True)
def keep_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_a_json_line_carries_fields_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.install("json", "info")
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        logging.getLogger("verbatim").exception("it %s", "failed", extra={"route": "/x", "odd": object})
    [line] = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("error", "verbatim", "it failed")
    assert told["route"] == "/x"
    assert told["traceback"].endswith("RuntimeError: two\nlines")
    assert told["time"].endswith("+00:00")
    assert set(told) == {"time", "level", "logger", "message", "route", "odd", "traceback"}


def test_a_text_line_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    logs.install("text", "info")
    logging.getLogger("verbatim").warning("a %s", "word")
    logging.getLogger("verbatim").debug("not this")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(" warning verbatim: a word")


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "expected"),
    [("text", False, True), ("json", True, False), ("auto", True, True), ("auto", False, False)],
)
def test_auto_asks_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, log_format: str, is_terminal: bool, expected: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    assert logs.is_text(log_format) is expected  # type: ignore[arg-type]
