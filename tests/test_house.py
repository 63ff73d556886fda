"""The tree keeps the rules of the house (see house.py), and each rule sees what breaks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import house
from tests.house import RULES, Rule, Source, title

ROOT = Path(__file__).resolve().parents[1]


def sources(*patterns: str) -> list[Source]:
    """The files of the tree under the patterns, which must find some."""
    paths = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    assert paths, f"no file matches {patterns}"
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


@pytest.mark.parametrize("rule", RULES, ids=title)
def test_the_tree_keeps(rule: Rule) -> None:
    findings = [
        f"{source.path}:{line}: {what}"
        for source in sources("model/**/*.py", "server/**/*.py")
        for line, what in sorted(set(rule(source)))
    ]
    assert not findings, "\n".join([title(rule), *findings])


def test_the_recipe_runs_no_foreign_code() -> None:
    findings = [
        (source.path, *finding)
        for source in sources("weights/*.py")
        for finding in house.runs_foreign_code(source)
    ]
    assert not findings


def broken_rules(path: str, text: str) -> list[str]:
    """The numbers or names of the rules that this file breaks."""
    return [
        title(rule).split(":")[0] for rule in RULES if list(rule(Source(path, f'"""Claim."""\n{text}\n')))
    ]


@pytest.mark.parametrize(
    ("door", "path", "text"),
    [
        ("1", "model/decoder.py", "import server.settings"),
        ("1", "model/decoder.py", "from fastapi import Depends"),
        ("1", "model/families/llama.py", "def f() -> None:\n    import asyncio"),
        ("2", "server/app.py", "import torch.nn as nn"),
        ("2", "server/cli.py", "from torch import Tensor"),
        ("2", "server/api/native.py", "from model.decoder import Decoder"),
        ("2", "server/api/native.py", "from model import runner"),
        ("2", "server/api/native.py", "from model.sampling import sampler"),
        ("2", "server/engine/worker.py", "from model.loader import load"),
        ("2", "server/engine/engine.py", "from model.runner import ModelRunner"),
        ("3", "server/engine/client.py", "import starlette.responses"),
        ("3", "server/engine/client.py", "from server import text"),
        ("3", "server/engine/client.py", "from ..api import sse"),
        ("3", "server/engine/scheduler.py", "from threading import Lock"),
        ("3", "server/engine/engine.py", "import asyncio"),
        ("4", "server/api/native.py", "from server.engine.scheduler import Scheduler"),
        ("4", "server/api/native.py", "from server.engine import engine"),
        ("5", "server/app.py", "import os\nPORT = os.environ['PORT']"),
        ("5", "model/loader.py", "from os import getenv as read\nHOME = read('HOME')"),
        ("5", "server/api/native.py", "from pydantic_settings import BaseSettings"),
        ("5", "server/api/native.py", "from server.settings import Settings\nSETTINGS = Settings()"),
        ("5", "server/app.py", "streams = {}"),
        ("5", "server/app.py", "streams: dict[str, int] = dict()"),
        ("5", "server/app.py", "STREAMS = {}\ndef f() -> None:\n    STREAMS['a'] = 1"),
        ("5", "server/app.py", "from server.api import sse\nsse.STREAMS.append(1)"),
        ("5", "server/app.py", "COUNT = 0\ndef f() -> None:\n    global COUNT\n    COUNT += 1"),
        ("5", "server/app.py", "from functools import lru_cache\n@lru_cache\ndef f() -> int:\n    return 1"),
        ("6", "server/engine/worker.py", "import pickle"),
        ("6", "model/loader.py", "import torch\ndef f() -> None:\n    torch.load('weights')"),
        ("6", "model/loader.py", "from torch import load"),
        ("6", "model/loader.py", "eval('1')"),
        ("6", "model/loader.py", "map(exec, ())"),
        ("6", "model/loader.py", "from_pretrained('x', trust_remote_code=True)"),
        ("6", "model/loader.py", "import importlib.util as u\nu.spec_from_file_location('a', 'b')"),
    ],
)
def test_a_broken_door_is_seen(door: str, path: str, text: str) -> None:
    assert broken_rules(path, text) == [door]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "server/engine/engine.py",
            "from model.interface import Model\nimport model.sampling.sampling_params",
        ),
        ("server/engine/worker.py", "from model import runner\nimport threading"),
        (
            "server/api/native.py",
            "from server.engine.client import TokenStream\nfrom server.engine import request",
        ),
        ("server/api/native.py", "from fastapi import APIRouter\nrouter = APIRouter()"),
        ("server/app.py", "from fastapi import FastAPI\ndef create_app() -> FastAPI:\n    return FastAPI()"),
        ("server/settings.py", "import os\nPORT = os.environ['PORT']"),
        ("model/decoder.py", "import re\ndecoder.eval()\nWORD = re.compile('a')\nKINDS = {}\nKINDS['a']"),
    ],
)
def test_what_the_house_allows_is_left_alone(path: str, text: str) -> None:
    assert broken_rules(path, text) == []


def test_a_missing_docstring_and_a_long_file_are_seen() -> None:
    body = "\n".join(f"x{line} = {line}" for line in range(house.MAX_FILE_LINES))
    assert list(house.lacks_docstring(Source("model/a.py", body)))
    assert not list(house.lacks_docstring(Source("model/__init__.py", "")))
    assert not list(house.is_too_long(Source("model/a.py", body)))
    assert list(house.is_too_long(Source("model/a.py", body + "\nx = 1")))
    function = "def f() -> None:" + "\n    x = 1" * house.MAX_FUNCTION_LINES
    assert list(house.is_too_long(Source("model/a.py", function)))


def test_every_exception_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = list(house.TOO_LONG)
    monkeypatch.setattr(house, "TOO_LONG", {})
    for name in exceptions:
        (source,) = sources(name.partition(":")[0])
        assert any(name in what for _, what in house.is_too_long(source)), f"{name} is short again"


# --- The same, by importing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("model.interface", ["torch", "numpy"]),
        ("server.app", ["torch"]),
        ("server.engine.engine", ["torch", "fastapi", "starlette", "prometheus_client", "tokenizers"]),
        ("server.engine.client", ["torch", "fastapi", "starlette", "prometheus_client", "tokenizers"]),
    ],
)
def test_it_imports_without(module: str, blocked: list[str]) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import {module}"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{module} does not import without {', '.join(blocked)}:\n{run.stderr}"
