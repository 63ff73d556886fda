"""What an operator sees, on a terminal that is really one."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time

import pytest

from server import console
from tests.server.fake_engine import INFO
from tests.whole import command


def test_the_panel_names_model_memory_and_address(capsys: pytest.CaptureFixture[str]) -> None:
    console.announce(INFO, "http://127.0.0.1:8000", 1.234, as_text=True)
    told = capsys.readouterr().err
    for fact in (
        "fake (fake)",
        "float32",
        "cpu, kernels: none",
        "1,024 tokens",
        "http://127.0.0.1:8000",
        "1.2 s",
    ):
        assert fact in told


def test_an_error_is_one_line_even_if_it_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    console.say_error("x" * 300 + " [bold]")
    assert capsys.readouterr().err == f"verbatim: {'x' * 300} [bold]\n"


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = console.LoadingBar(as_text=True)
    bar.show(1, 2)
    bar.close()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_panel_and_readable_lines() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("serve", "--port", "0"), stderr=theirs, env={**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    )
    os.close(theirs)
    seen, deadline_s = "", time.monotonic() + 40
    try:
        while "ready in" not in seen:
            assert time.monotonic() < deadline_s, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "Verbatim" in text
    assert "verbatim-storyteller" in text
    assert "{" not in text, "no JSON"
