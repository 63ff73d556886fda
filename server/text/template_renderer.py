"""The process in which chat templates are rendered: `python -m server.text.template_renderer`.

Decides what a template may use of Jinja, of the processor, of memory and of the system. Knows nothing of
folders. It reads one line of JSON after the other and answers each with one: first the templates and the
limits, then what to render. A template that runs too long ends the process, by the kernel's hand; whoever
started it sees the pipe close.
"""

from __future__ import annotations

import codecs
import json
import pprint
import resource
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2.constants  # with those below: what Jinja would import later, when no file opens any more
import jinja2.debug
from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.text.helper import answer_lines_alone

MAX_SHOWN_CHARS = 300
IMPORTED_EARLY = (pprint, textwrap, jinja2.constants, jinja2.debug)


class Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`, which mark what a model is to learn: a mere block."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call with a body of its own, as transformers has it: what it sets, stays in it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller: Callable[[], str]) -> str:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    jinja.filters["tojson"] = _tojson
    jinja.globals["raise_exception"] = _raise_exception
    jinja.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return jinja


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON that is read by a model, not by a browser: nothing is escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class Refusal(TemplateError):
    """What a template itself says against a conversation."""


def _raise_exception(message: Any) -> None:
    raise Refusal(str(message))


class Renderer:
    """Compiled templates, and what one rendering may take."""

    def __init__(self, max_cpu_s: float, max_chars: int) -> None:
        self._max_cpu_s = max_cpu_s
        self._max_chars = max_chars
        self._templates: dict[str, Template] = {}

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Compile or render what is asked; an `error`, with its `kind`, where that fails."""
        signal.setitimer(signal.ITIMER_PROF, self._max_cpu_s)
        try:
            if "templates" in question:
                return self._compile(question["templates"])
            return self._render(self._templates[question["template"]], question["variables"])
        except Refusal as error:
            return _error("refused", str(error))
        except MemoryError:
            return _error("memory", "")
        except RecursionError:
            return _error("failed", "it nests too deep")
        except OSError:  # whose message may name a path
            return _error("failed", "it asks for a file")
        except Exception as error:  # whatever a template makes of a conversation
            return _error("failed", str(error) or type(error).__name__)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _compile(self, sources: Mapping[str, str]) -> dict[str, Any]:
        jinja = environment()
        for name, source in sources.items():
            try:
                self._templates[name] = jinja.from_string(source)
            except TemplateSyntaxError as error:
                return _error("syntax", f"line {error.lineno}: {error.message}") | {"template": name}
            except RecursionError:
                return _error("syntax", "it nests too deep") | {"template": name}
        return {}

    def _render(self, template: Template, variables: Mapping[str, Any]) -> dict[str, Any]:
        num_chars, blocks = 0, []
        for block in template.generate(**variables):
            num_chars += len(block)
            if num_chars > self._max_chars:
                return _error("size", "")
            blocks.append(block)
        return {"text": "".join(blocks)}


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"kind": kind, "error": " ".join(message.split())[:MAX_SHOWN_CHARS]}


def _renounce(max_bytes: int) -> None:
    """Give up what no template needs: memory beyond the limit, files, processes."""
    codecs.lookup("unicode_escape")  # what a string in a template is read with
    datetime.now().astimezone()
    for limit, value in (
        (resource.RLIMIT_AS, max_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, allowed = resource.getrlimit(limit)
        value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(limit, (value, value))


def main() -> None:
    """Answer until the other end closes."""
    answer_lines_alone()
    first = json.loads(sys.stdin.buffer.readline())
    _renounce(first["max_bytes"])
    renderer = Renderer(first["max_cpu_s"], first["max_chars"])
    question = first
    while True:
        sys.stdout.buffer.write(json.dumps(renderer.answer(question)).encode() + b"\n")
        sys.stdout.buffer.flush()
        if not (line := sys.stdin.buffer.readline()):
            return
        question = json.loads(line)


if __name__ == "__main__":
    main()
