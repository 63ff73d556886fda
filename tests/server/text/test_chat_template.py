"""Chat templates of real models against transformers' rendering, and hostile ones against their limits."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from server.text.chat_template import ChatTemplate, ChatTemplateError, RenderLimits, find_templates
from tests.server.text.folders import write

TOKENS: dict[str, str | list[str]] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "additional_special_tokens": ["<x>"],
}
SYSTEM = {"role": "system", "content": "You are a  fox.\n"}
HI = {"role": "user", "content": " Hi <b>&amp;</b> 'you' \"é\" 東京 \n"}
YO = {"role": "assistant", "content": "Yo."}
FUNCTION = {"name": "weather", "arguments": {"city": "Köln <1>", "days": 2, "is_sure": True}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call12345", "type": "function", "function": FUNCTION}],
}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": '{"rain": 0.5}'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city & more",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its <name>"},
                    "days": {"type": "integer", "enum": [1, 2]},
                    "is_sure": {"type": "boolean"},
                    "of": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["city"],
            },
        },
    }
]
DOCUMENTS = [{"title": "Foxes", "text": "They are red."}]
THOUGHT = YO | {"content": "<think>\nhm\n</think>\n\nYo.", "reasoning_content": "hm", "thinking": "hm"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [HI],
    "system": [SYSTEM, HI],
    "turns": [SYSTEM, HI, YO, HI, YO, HI],
    "answered": [HI, YO],
    "call": [HI, CALL],
    "result": [SYSTEM, HI, CALL, RESULT],
    "results": [HI, CALL, RESULT, RESULT, YO, HI],
    "call as text": [
        HI, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"days": 2}'}}
        ]}, RESULT,
    ],
    "thought": [HI, THOUGHT, HI],
    "parts": [PARTS],
    "two users": [HI, HI],
    "odd role": [{"role": "narrator", "content": "once"}],
    "no content": [{"role": "user"}],
    "nothing": [],
}  # fmt: skip
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "no tools": {"tools": []},
    "documents": {"documents": DOCUMENTS},
    "variables": {"variables": {"enable_thinking": False, "functions": "[]", "datetime": "now",
                                "date_string": "26 Jul 2024", "tools_in_user_message": False}},
}  # fmt: skip


def sources(data: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((data / "chat_templates").rglob("*")):
        name = str(path.relative_to(data / "chat_templates"))
        if path.suffix == ".jinja":
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".json":
            held = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            if held is not None:
                yield name, held


def theirs(source: str, messages: list[dict[str, Any]], is_open: bool, extra: dict[str, Any]) -> str | None:
    """What transformers renders, or None where it raises, whatever it raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    extra = dict(extra)
    variables = TOKENS | extra.pop("variables", {})
    try:
        rendered: Any = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=is_open, **extra, **variables
        )
    except Exception:
        return None
    return str(rendered[0][0])


def folder_of(folder: Path, source: str) -> Path:
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return folder


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., ChatTemplate]]:
    loaded: list[ChatTemplate] = []

    def load(source: str | None = None, **limits: Any) -> ChatTemplate:
        if source is not None:
            folder_of(tmp_path, source)
        loaded.append(ChatTemplate(tmp_path, TOKENS, RenderLimits(**limits)))
        return loaded[-1]

    yield load
    for template in loaded:
        template.close()


# Real templates


@pytest.mark.parametrize("part", range(5))  # a test has a minute
def test_every_template_renders_as_transformers_renders_it(
    part: int, shared_data: Path, load: Callable[..., ChatTemplate]
) -> None:
    num_equal = num_refused = 0
    assert len(list(sources(shared_data))) >= 41
    for name, source in islice(sources(shared_data), part, None, 5):
        template = load(source)
        for case, messages in CONVERSATIONS.items():
            for kind, extra in EXTRAS.items():
                for is_open in (True, False):
                    expected = theirs(source, messages, is_open, extra)
                    text: str | None
                    try:
                        text = template.render(messages, add_generation_prompt=is_open, **extra)
                    except ChatTemplateError:
                        text = None
                    assert text == expected, (name, case, kind)
                    num_refused += text is None
                    num_equal += text is not None
        template.close()
    assert num_equal > num_refused > 0


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{% continue %}x{% endfor %}",
        "  {% if true %}\n  a\n  {%- endif %}\n\n  {% set x = 1 %}\n{{ x }}\n",
        "{% generation %}{% set x = 2 %}a{{ x }}{% endgeneration %}[{{ x }}]",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': '<é>'} | tojson }}",
        "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
        "{{ tools | tojson(separators=(',', ':')) }}{{ tools | tojson(ensure_ascii=true) }}{{ documents }}",
        "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ additional_special_tokens }}",
        "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
        "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
        "{{ 'a-b'.split('-') }}{{ 'x' | indent(2, true) }}{{ messages[0]['content'] | trim | upper }}",
        "{{ messages | map(attribute='role') | join(',') }}",
        "{{ messages | selectattr('role', 'eq', 'user') | list }}",
        "{{ 3.14159 | round(2) }}{{ 1 / 3 }}{{ 2 ** 70 }}{{ 'é' | length }}{{ 'a\\u00e9\\n' }}",
        "{{ '%05d' % 3 }}{{ '%s' | format('a') }}{{ 7 // 2 }}{{ 7 % 2 }}",
        "{{ messages | groupby('role') }}{{ [3, 1] | sort }}{{ range(3) | list }}{{ 'a' ~ 1 ~ none ~ true }}",
        "{{ messages | pprint }}{{ 'a b' | wordwrap(1) }}{{ lipsum(1, min=1, max=2) is string }}",
        "{{ 'http://a.b' | urlize }}{{ '<' | e }}{{ 'ab' | batch(1) | list }}{{ {'a': 1} | xmlattr }}",
        "{{ strftime_now('%Y') }}{{ messages is iterable }}{{ messages[9] is defined }}{{ messages[9] }}",
        "{{ messages | list | last }}{{ dict(a=1) }}{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}",
        "{{ messages.append(1) }}",
        "{{ messages[9].x }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('no\\nsuch') }}",
        "{{ nothing() }}",
        "{{ range(10 ** 12) }}",
        "{{ namespace | tojson }}",
    ],
)  # fmt: skip
def test_each_part_of_the_language_is_that_of_transformers(
    source: str, load: Callable[..., ChatTemplate]
) -> None:
    template = load(source)
    for messages in ([HI], [SYSTEM, HI, YO]):
        expected = theirs(source, messages, True, {"tools": TOOLS})
        if expected is None:
            with pytest.raises(ChatTemplateError):
                template.render(messages, TOOLS, add_generation_prompt=True)
        else:
            assert template.render(messages, TOOLS, add_generation_prompt=True) == expected


def test_a_refusal_of_the_template_is_its_own_sentence_in_one_line(load: Callable[..., ChatTemplate]) -> None:
    template = load("{% if not messages %}{{ raise_exception('ask\nsomething ' + 'x' * 9999) }}{% endif %}ok")
    with pytest.raises(ChatTemplateError, match=r"^the chat template refuses this: ask something x{286}$"):
        template.render([])
    assert template.render([HI]) == "ok"


# Hostile templates

HOSTILE = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "processor time",
    "{{ (messages | length + 9) ** (10 ** 8) }}": "processor time",
    "{{ messages[0].content ** 2 }}": "unsupported operand",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "nests too deep",
    "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}": "MiB of memory|nests too deep|processor",
    "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "MiB of",
    "{% set n = namespace(x=[1]) %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}": "MiB of",
    "{{ 'a' * messages | length * 10 ** 9 }}": "MiB of memory",
    "{{ 'a'.ljust(10 ** 10) }}": "MiB of memory",
    "{{ '%1000000000d' % messages | length }}": "MiB of memory",
    "{{ '{:>9999999999}'.format(messages | length) }}": "MiB of memory",
    "{{ messages | tojson(indent=10 ** 9) }}": "MiB of memory",
    "{{ 'a' | center(10 ** 9) }}": "MiB of memory",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}": "characters",
    "{{ lipsum(n=10 ** 9) }}": "processor time|MiB of memory",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages.__init__.__globals__ }}": "unsafe",
    "{{ (messages | attr('__class__')).__base__ }}": "unsafe|undefined|has no attribute",
    "{{ '{0.__class__.__mro__}'.format(messages) }}": "unsafe",
    "{{ raise_exception.__globals__.keys() }}": "unsafe",
    "{{ self.__init__.__globals__ }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.system('true') }}": "unsafe|undefined|has no attribute",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{{ range(10 ** 12) | list }}": "Range too big",
}


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_meets_a_limit_and_the_next_rendering_works(
    source: str, load: Callable[..., ChatTemplate]
) -> None:
    template = load(
        "{% if messages %}" + source + "{% else %}still here{% endif %}",
        max_cpu_s=0.5, max_bytes=256 << 20, max_chars=10**6,
    )  # fmt: skip
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=HOSTILE[source]) as caught:
            template.render([HI])
        assert "\n" not in str(caught.value)
    assert template.render([]) == "still here"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("a\n{% for m in messages %}\n", "line 2: Unexpected end of template"),
        ("{{ 'a' | no_such_filter }}", "line 1: No filter named 'no_such_filter'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests too deep"),
        ("{{ " + "1+" * 5_000 + "1 }}", "nests too deep"),
        ("{{ 10 ** (10 ** 8) }}", "processor time"),  # which Jinja computes while it reads
        ("x" * (1 << 21), "has 2097152 bytes, must be at most 1048576"),
    ],
)
def test_a_template_that_cannot_be_read_is_named_in_one_line(
    source: str, cause: str, tmp_path: Path, load: Callable[..., ChatTemplate]
) -> None:
    with pytest.raises(ValueError, match=cause) as caught:
        load(source, max_cpu_s=2.0, max_bytes=256 << 20)
    assert str(caught.value).startswith(f"cannot load {tmp_path / 'chat_template.jinja'}: ")
    assert "\n" not in str(caught.value)


def test_a_process_that_hangs_without_working_is_ended(load: Callable[..., ChatTemplate]) -> None:
    template = load("ok", max_wall_s=3.0)
    process = template._helper.process
    assert process is not None
    os.kill(process.pid, 19)  # SIGSTOP
    with pytest.raises(ChatTemplateError, match=r"takes more than 3 s$"):
        template.render([HI])
    assert template.render([HI]) == "ok"


def test_a_process_that_died_meanwhile_costs_no_rendering(load: Callable[..., ChatTemplate]) -> None:
    template = load("ok")
    process = template._helper.process
    assert process is not None
    process.kill()
    process.wait()
    assert template.render([HI]) == "ok"


def test_threads_take_turns_and_each_gets_its_own(load: Callable[..., ChatTemplate]) -> None:
    template = load("{{ messages[0].content }}")
    texts: dict[int, str] = {}

    def render(number: int) -> None:
        texts[number] = template.render([HI | {"content": str(number) * 100_000}])

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: str(number) * 100_000 for number in range(8)}


def test_the_renderer_can_open_no_file_even_outside_the_sandbox() -> None:
    """If the sandbox had a hole, what is behind it would find nothing to take."""
    import subprocess
    import sys

    script = (
        "from server.text.template_renderer import _renounce; import os, socket\n"
        "_renounce(1 << 30)\n"
        "for act in (lambda: open('/etc/passwd'), socket.socket, os.pipe):\n"
        "    try: act(); print('could')\n"
        "    except OSError: print('could not')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:-1] == ["could not"] * 3


def test_the_process_ends_with_its_parents_pipe(load: Callable[..., ChatTemplate]) -> None:
    template = load("ok")
    process = template._helper.process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdin = None
    began_s = time.monotonic()
    template.close()
    assert time.monotonic() - began_s < 10


# Where templates lie


def test_a_file_of_its_own_outranks_the_configuration(tmp_path: Path) -> None:
    assert find_templates(tmp_path) == {}
    write(tmp_path, "chat_template.json", {"chat_template": "from json"})
    assert texts(tmp_path) == {"default": "from json"}
    write(tmp_path, "tokenizer_config.json", {"chat_template": "from config"})
    assert texts(tmp_path) == {"default": "from config"}
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert texts(tmp_path) == {"default": "a", "tool_use": "b"}
    folder_of(tmp_path, "from file")
    assert texts(tmp_path) == {"default": "from file"}
    (tmp_path / "additional_chat_templates").mkdir()
    write(tmp_path, "additional_chat_templates/rag.jinja", "from a file beside")
    assert texts(tmp_path) == {"default": "from file", "rag": "from a file beside"}


def texts(folder: Path) -> dict[str, str]:
    return {name: source.text for name, source in find_templates(folder).items()}


def test_tools_choose_the_template_for_them(tmp_path: Path, load: Callable[..., ChatTemplate]) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    template = load()
    assert template.render([HI]) == "plain"
    assert template.render([HI], TOOLS) == "1"


def test_without_a_default_plain_use_is_refused(tmp_path: Path, load: Callable[..., ChatTemplate]) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "x"}]})
    with pytest.raises(ChatTemplateError, match="has chat templates for rag alone"):
        load().render([HI])


@pytest.mark.parametrize(
    "held", [5, [], {}, [5], [{"name": "a"}], [{"name": 1, "template": "a"}], ["a"], "a" * (1 << 21)]
)
def test_what_is_no_template_is_refused_by_its_files_name(held: object, tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": held})
    with pytest.raises(ValueError, match=r"^cannot load .*tokenizer_config\.json: .*chat_template"):
        find_templates(tmp_path)


def test_a_folder_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTemplate(tmp_path, TOKENS)
