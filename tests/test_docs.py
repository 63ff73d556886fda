"""The documents against the code: tables row by row, examples by running them, links by following them.

A row that is wrong is printed as it should be, to be pasted. Prose in a last column is the author's.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

from model.families import family_of, known_families
from model.families._fields import FIXED, HARMLESS_BY_REASON
from model.families._rotary import SCALINGS
from server import cli
from server.api import json_body
from server.api.answers import (
    Details,
    DetokenizeAnswer,
    ErrorAnswer,
    GenerateAnswer,
    StatusAnswer,
    StreamDetails,
    StreamEvent,
    TextToken,
)
from server.api.info import InfoAnswer, MemoryAnswer
from server.api.schemas import GenerateBody, TextParameters
from server.api.translate import translate
from server.app import create_app
from server.engine.request import EngineStats
from server.errors import ERRORS, MAX_SHOWN_CHARS
from server.metrics import FINISH_REASONS, DropReason, Metrics
from server.middleware import MAX_HEADER_BYTES, MAX_HEADERS, OPEN_PATHS
from server.protocol import MAX_HEAD_BYTES, MAX_PIPELINED
from server.settings import ENV_PREFIX, Settings, load_settings
from tests.server.fake_engine import FakeEngine
from tests.server.live import byte_tokenizer
from tests.whole import Server, running

ROOT = Path(__file__).resolve().parents[1]
FAMILIES, HTTP, METRICS, SETTINGS = (
    ROOT / "docs" / name for name in ("families.md", "http.md", "metrics.md", "settings.md")
)
PAGES = sorted(page for folder in (".", "docs", "weights") for page in (ROOT / folder).glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CURL = re.compile(r"\bcurl ((?:[^'\n|]|'[^']*')+)")

Row = tuple[str, ...]


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path, *languages: str) -> list[str]:
    """The page's blocks in these languages."""
    return [text for language, text in FENCED.findall(page.read_text("utf-8")) if language in languages]


def table(page: Path, heading: str) -> list[Row]:
    """The rows of the tables between this heading and the next."""
    _, found, after = page.read_text("utf-8").partition(f"## {heading}\n")
    assert found, f"{title(page)} has no heading {heading!r}"
    section = re.split(r"^#+ ", after, maxsplit=1, flags=re.MULTILINE)[0]
    lines = re.findall(r"^\|(?! ---)(.*)\|$", section, re.MULTILINE)
    heads = len(re.findall(r"^\| ---", section, re.MULTILINE))
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in lines]
    assert heads == 1, f"{title(page)}, {heading}: there must be one table"
    return rows[1:]


def compare(rows: list[Row], expected: Sequence[Row]) -> None:
    """Fail with the rows that are too many (-) and those that are missing (+); more columns are free."""
    written = Counter(row[: len(expected[0])] for row in rows)
    right = Counter(expected)
    wrong = [f"- | {' | '.join(row)} |" for row in written - right]
    missing = [f"+ | {' | '.join(row)} |" for row in right - written]
    if wrong or missing:
        pytest.fail("\n".join(["the table differs from the code:", *wrong, *missing]))
    assert all(all(row) for row in rows), "a cell is empty"


BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters", "maxItems": "≤ {} items", "maxProperties": "≤ {} entries",
}  # fmt: skip


def typed(schema: dict[str, Any]) -> str:
    """A JSON schema's type and bounds, as a table shows them."""
    if "anyOf" in schema:
        return " or ".join(typed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    words = [{"array": "list"}.get(kind := schema.get("type", "object"), kind)]
    for keyword, words_for in BOUNDS.items():
        if (value := schema.get(keyword)) is not None:
            words.append(words_for.format(f"{value:g}" if isinstance(value, float) else value))
    each = schema.get("items") or next(iter(schema.get("patternProperties", {}).values()), None)
    return ", ".join([*words, f"each: {typed(each)}"] if each else words)


def fields(properties: dict[str, Any]) -> list[Row]:
    """The first two columns of a table of fields: name and type."""
    return [(f"`{name}`", typed(schema)) for name, schema in properties.items()]


def body_fields(properties: dict[str, Any]) -> list[Row]:
    """The same of a body, where null is as good as absent."""
    return [(name, kind.removesuffix(" or null")) for name, kind in fields(properties)]


# ---- docs/http.md -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(load_settings(), FakeEngine(), byte_tokenizer())


@pytest.fixture(scope="module")
def schemas(app: FastAPI) -> dict[str, Any]:
    """What the OpenAPI document says of each shape, by name."""
    return {name: schema["properties"] for name, schema in app.openapi()["components"]["schemas"].items()}


def test_every_route_is_documented(app: FastAPI) -> None:
    routes = [
        (f"`{method.upper()}`", f"`{path}`")
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    compare(table(HTTP, "Routes"), [*routes, ("`GET`", "`/docs`"), ("`GET`", "`/openapi.json`")])
    assert all(f"`{path}`" in HTTP.read_text("utf-8") for path in OPEN_PATHS)


@pytest.mark.parametrize(("heading", "name"), [("The body", "GenerateBody"), ("Tokenizing", "TokenizeBody")])
def test_the_fields_of_a_body_are_those_that_are_read(
    heading: str, name: str, schemas: dict[str, Any]
) -> None:
    compare(table(HTTP, heading), body_fields(schemas[name]))


# What has no constant value when absent.
IN_WORDS = {
    "do_sample": "as below",
    "max_new_tokens": "what fits",
    "seed": "drawn",
    "stop_token_ids": "the model's own",
}


def test_the_parameters_their_bounds_and_their_absence_are_those_of_the_code(
    app: FastAPI, schemas: dict[str, Any]
) -> None:
    body = GenerateBody.model_validate({"inputs": "a", "parameters": {"do_sample": True}})
    effects = translate(body, app.state.front, is_stream=False).parameters
    expected = [
        (name, kind, IN_WORDS.get(name.strip("`"), f"`{json.dumps(effects[name.strip('`')])}`"))
        for name, kind in body_fields(schemas["GenerateParameters"])
    ]
    refused = {
        f"`{name}`"
        for name, field in TextParameters.model_fields.items()
        if "not supported" in str(field.description)
    }
    compare(table(HTTP, "Parameters"), [row for row in expected if row[0] not in refused])
    compare(table(HTTP, "Parameters not supported yet"), [row for row in expected if row[0] in refused])


@pytest.mark.parametrize(
    ("heading", "shape"), [("Details", Details), ("Info", InfoAnswer), ("Memory", MemoryAnswer)]
)
def test_the_fields_of_an_answer_are_documented(
    heading: str, shape: type[Details | InfoAnswer | MemoryAnswer]
) -> None:
    compare(table(HTTP, heading), fields(shape.model_json_schema(mode="serialization")["properties"]))


def test_every_finish_reason_is_documented() -> None:
    reasons = get_args(StreamDetails.model_fields["finish_reason"].annotation)
    compare(table(HTTP, "Finish reasons"), [(f"`{reason}`",) for reason in reasons])
    assert reasons == FINISH_REASONS


def test_every_error_is_documented() -> None:
    expected = [
        (str(error.status), f"`{error.error_type}`", (error.__doc__ or "").partition("\n")[0])
        for error in ERRORS
    ]
    compare(table(HTTP, "Errors"), expected)


def test_the_limits_are_those_of_the_code() -> None:
    limits = {
        "levels in a body": json_body.MAX_DEPTH,
        "headers": MAX_HEADERS,
        "bytes of headers": MAX_HEADER_BYTES,
        "bytes of request line and headers": MAX_HEAD_BYTES,
        "characters of a value in an error": MAX_SHOWN_CHARS,
        "requests sent ahead of their answers, on one connection": MAX_PIPELINED,
    }
    compare(table(HTTP, "Limits"), [(name, str(limit)) for name, limit in limits.items()])


def test_every_cause_to_cut_a_connection_is_documented() -> None:
    compare(table(HTTP, "Connections"), [(f"`{reason}`",) for reason in get_args(DropReason)])


ANSWERS: TypeAdapter[Any] = TypeAdapter(
    GenerateAnswer | list[GenerateAnswer] | StreamEvent | ErrorAnswer | list[TextToken] | DetokenizeAnswer
    | InfoAnswer | StatusAnswer
)  # fmt: skip


EVENTS = re.findall(r"^data: (.*)$", HTTP.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("text", [*fenced(HTTP, "json"), *EVENTS])
def test_an_answer_that_is_shown_has_a_documented_shape(text: str) -> None:
    ANSWERS.validate_json(text)


# ---- the examples -----------------------------------------------------------------------------------------


def examples() -> dict[str, str]:
    """The arguments of each curl of the pages, up to a pipe, by page and number."""
    found = {}
    for page in PAGES:
        text = "".join(fenced(page, "sh", "bash", "console")).replace("\\\n", " ")
        for number, command in enumerate(CURL.findall(text), start=1):
            found[f"{title(page)} {number}"] = command
    return found


def parse_curl(command: str) -> argparse.Namespace:
    """Reads the few options of curl that our examples use; exits for others."""
    parser = argparse.ArgumentParser("curl")
    parser.add_argument("url")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    for switch in ("-s", "-S", "-f", "-N", "-i"):
        parser.add_argument(switch, action="store_true")
    return parser.parse_intermixed_args(shlex.split(command, comments=True))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as it:
        yield it


@pytest.mark.parametrize("command", examples().values(), ids=examples())
def test_an_example_is_answered_by_the_embedded_model(command: str, server: Server) -> None:
    given = parse_curl(command)
    address, _, path = given.url.removeprefix("http://").partition("/")
    assert address == f"localhost:{Settings.model_fields['port'].default}"
    # What curl says of a body if it is told nothing else, and the server refuses.
    headers = {"content-type": "application/x-www-form-urlencoded"} if given.data else {}
    headers |= {name.lower(): value.strip() for name, _, value in (h.partition(":") for h in given.header)}
    method = "POST" if given.data else "GET"
    response = server.http.request(method, f"/{path}", content=given.data, headers=headers)
    assert response.status_code == 200, response.text


def test_every_header_of_an_answer_is_documented(server: Server) -> None:
    response = server.http.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 1}})
    names = [name for name in response.headers if name.startswith("x-")]
    compare(table(HTTP, "Headers"), [(f"`{name}`",) for name in names])


# ---- CONTRIBUTING.md --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "last_words"), [("", "--cov"), ("tests/model -k attention", "tests/model -k attention")]
)
def test_make_runs_the_tests_that_it_is_told(args: str, last_words: str) -> None:
    """`--cov` before a path takes it for what is to be covered, and all tests run."""
    command = ["make", "--no-print-directory", "-n", "pytest", f"ARGS={args}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.rstrip().endswith(f" worksteal {last_words}")


# ---- docs/metrics.md --------------------------------------------------------------------------------------


def test_every_series_is_documented() -> None:
    metrics = Metrics(EngineStats)
    metrics.answered("/generate", 200)  # a series whose labels are not known beforehand
    expected = []
    for family in text_string_to_metric_families(metrics.render().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        expected.append((f"`{name}`", family.type, shown or "none", family.documentation))
    compare(table(METRICS, "Series"), expected)


# ---- docs/settings.md -------------------------------------------------------------------------------------


def flag(name: str) -> str:
    return "the argument" if name == "model_dir" else f"`--{name.replace('_', '-')}`"


def test_every_setting_is_documented() -> None:
    expected = [
        (
            f"`{name}`",
            flag(name),
            f"`{ENV_PREFIX}{name.upper()}`",
            typed(schema).removesuffix(" or null"),
            "none" if schema["default"] in (None, []) else f"`{schema['default']}`",
            schema["description"],
        )
        for name, schema in Settings.model_json_schema()["properties"].items()
    ]
    compare(table(SETTINGS, "Settings"), expected)


@pytest.mark.parametrize("text", fenced(SETTINGS, "toml"))
def test_a_settings_file_that_is_shown_is_taken(text: str, tmp_path: Path) -> None:
    path = tmp_path / "verbatim.toml"
    path.write_text(text, "utf-8")
    assert load_settings(config=path) != load_settings()


def test_the_help_names_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["verbatim", "serve", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    names = {"model_dir" if name == "model_dir" else flag(name).strip("`") for name in Settings.model_fields}
    assert names <= set(text.split())


# ---- docs/families.md -------------------------------------------------------------------------------------


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def transformers_versions() -> str:
    """What the tests are run with, as pyproject.toml bounds it."""
    found = re.search(r'"transformers([^"]*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert found
    return f"`{found[1]}`"


def families() -> list[Row]:
    rows: list[Row] = []
    for model_type in known_families():
        family = family_of(model_type)
        honoured = sorted(field.encode_name for field in msgspec.structs.fields(family.FIELDS))
        fixed = ", ".join(f"`{name}` {json.dumps(value)}" for name, value in sorted(family.FIXED.items()))
        what = (family.__doc__ or "").partition("\n")[0]
        rows.append((f"`{model_type}`", listed(honoured), fixed or "none", what))
    return rows


def fixed_fields() -> list[Row]:
    return [(f"`{name}`", f"`{json.dumps(value)}`") for name, value in FIXED.items()]


def harmless_fields() -> list[Row]:
    return [(listed(names.split()), reason) for reason, names in HARMLESS_BY_REASON.items()]


def rope_scalings() -> list[Row]:
    return [
        (f"`{kind}`", listed(sorted(required)), listed(sorted(optional)))
        for kind, (required, optional) in SCALINGS.items()
    ]


def test_every_family_is_documented() -> None:
    compare(table(FAMILIES, "Model types"), families())
    assert f"`transformers` {transformers_versions()}" in FAMILIES.read_text("utf-8")


def test_every_field_of_all_families_is_documented() -> None:
    compare(table(FAMILIES, "For all families"), fixed_fields())
    compare(table(FAMILIES, "Without effect"), harmless_fields())
    compare(table(FAMILIES, "Longer contexts"), rope_scalings())


# ---- every page -------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names by which a link may reach this page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text("utf-8"))):
        if urlsplit(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{title(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{title(page)}: {link}"
