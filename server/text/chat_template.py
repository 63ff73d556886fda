"""A folder's chat template: a conversation -> the text of a prompt, within limits of time and size.

Decides which of a folder's templates counts, and what a rendering may cost. Knows nothing of Jinja: what
runs a template is another process, server/text/template_renderer.py, that is killed if it does not end.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.text.helper import Helper
from server.text.links import read_inside
from server.text.tokenizer_config import read_json

DEFAULT, TOOL_USE = "default", "tool_use"
_MAX_SOURCE_BYTES = 1 << 20


class ChatTemplateError(ValueError):
    """A conversation cannot be rendered. The message is one sentence, which a client may read."""


@dataclass(frozen=True, slots=True)
class Source:
    """One template of a folder and the file that it is in."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may take; real templates take a few milliseconds and megabytes."""

    max_cpu_s: float = 2.0
    max_wall_s: float = 30.0  # where the processor is busy with others; past it the process counts as hung
    max_bytes: int = 512 << 20  # of address space, the interpreter included
    max_chars: int = 8 << 20


def find_templates(folder: Path) -> dict[str, Source]:
    """The folder's templates by name, uncompiled; empty if it has none.

    As transformers: chat_template.jinja and additional_chat_templates/*.jinja, else that of
    tokenizer_config.json, else chat_template.json. Raises `ValueError` naming the file and the cause.
    """
    files = {DEFAULT: folder / "chat_template.jinja"} if (folder / "chat_template.jinja").is_file() else {}
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if files:
        return {name: Source(path, _read_text(path, folder)) for name, path in files.items()}
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        held = read_json(path).get("chat_template") if path.is_file() else None
        if held is not None:
            return {name: Source(path, text) for name, text in _named(path, held)}
    return {}


def check_templates(folder: Path) -> None:
    """Raise `ValueError` if the folder has a chat template that cannot be read."""
    if find_templates(folder):
        ChatTemplate(folder, {}).close()


class ChatTemplate:
    """The chat template of one folder; safe to share between threads, which take turns.

    Rendering blocks: call it off the event loop. Its process starts with this object and again after a
    rendering that had to be killed.
    """

    def __init__(
        self,
        folder: Path,
        special_tokens: Mapping[str, str | list[str]],
        limits: RenderLimits | None = None,
    ) -> None:
        """Raises `ValueError` naming the file and the cause, such as a line with a syntax error.

        special_tokens: what templates know as `bos_token` and so on; see `Tokenizer.special_tokens`.
        """
        self._sources = find_templates(folder)
        if not self._sources:
            raise ValueError(f"{folder} has no chat template")
        self._special_tokens = dict(special_tokens)
        self._limits = limits or RenderLimits()
        self._turn = threading.Lock()
        self._helper = Helper("server.text.template_renderer", self._limits.max_wall_s)
        try:
            with self._turn:
                self._start()
        except ChatTemplateError as error:
            raise ValueError(f"cannot load {self._sources[self._default()].path}: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, special tokens spelled out: encode it with `add_special_tokens=False`.

        Of several templates, `tool_use` renders a conversation with tools. `variables` are what else a
        template may ask for, as `enable_thinking`. Raises `ChatTemplateError` where the template refuses the
        conversation, fails, or passes a limit.
        """
        name = TOOL_USE if tools is not None and TOOL_USE in self._sources else DEFAULT
        if name not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise ChatTemplateError(f"the model has chat templates for {names} alone, none for plain use")
        known = {
            "messages": messages, "tools": tools, "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        question = {"template": name, "variables": self._special_tokens | dict(variables or {}) | known}
        with self._turn:
            if not self._helper.is_alive:
                self._start()
            text: str = self._ask(question)["text"]
        return text

    def close(self) -> None:
        """End the process. A later rendering would start it again."""
        with self._turn:
            self._helper.end()

    def _default(self) -> str:
        return DEFAULT if DEFAULT in self._sources else next(iter(self._sources))

    def _start(self) -> None:
        self._helper.start()
        limits = self._limits
        self._ask({
            "templates": {name: source.text for name, source in self._sources.items()},
            "max_cpu_s": limits.max_cpu_s, "max_bytes": limits.max_bytes, "max_chars": limits.max_chars,
        })  # fmt: skip

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One line there, one line back; whoever passes a limit loses the process."""
        line = self._helper.exchange(json.dumps(question).encode() + b"\n")
        if not line.endswith(b"\n"):
            raise ChatTemplateError(self._why_it_ended(self._helper.end()))
        answer: dict[str, Any] = json.loads(line)
        match answer.get("kind"):
            case None:
                return answer
            case "refused":
                raise ChatTemplateError(f"the chat template refuses this: {answer['error']}")
            case "failed":
                raise ChatTemplateError(f"the chat template fails on this: {answer['error']}")
        self._helper.end()  # it may hold much memory, or is of no use
        if answer["kind"] == "syntax":
            raise ValueError(f"cannot load {self._sources[answer['template']].path}: {answer['error']}")
        limits = self._limits
        needs = {
            "memory": f"needs more than {limits.max_bytes >> 20} MiB of memory",
            "size": f"makes more than {limits.max_chars} characters of this",
        }
        raise ChatTemplateError(f"the chat template {needs[answer['kind']]}")

    def _why_it_ended(self, status: int) -> str:
        if status == -signal.SIGPROF:
            return f"the chat template takes more than {self._limits.max_cpu_s:g} s of processor time"
        if status == -signal.SIGKILL:
            return f"the chat template takes more than {self._limits.max_wall_s:g} s"
        return f"the chat template ends its process, with status {status}"


def _read_text(path: Path, folder: Path) -> str:
    try:
        return read_inside(path, folder, _MAX_SOURCE_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {path}: {error}") from error


def _named(path: Path, held: object) -> Iterator[tuple[str, str]]:
    """The templates that a JSON file holds: one, or several with names."""
    pairs: Any = [(DEFAULT, held)] if isinstance(held, str) else held
    if isinstance(held, dict):
        pairs = held.items()
    elif isinstance(held, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in held if isinstance(entry, dict)]
    if not isinstance(held, str | dict | list) or not pairs:
        raise ValueError(f"cannot load {path}: chat_template must be a string, or a list with names")
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(
                f"cannot load {path}: each chat_template in the list needs a name and a template"
            )
        if len(text.encode("utf-8", "surrogatepass")) > _MAX_SOURCE_BYTES:
            raise ValueError(
                f"cannot load {path}: chat_template {name!r:.100} is over {_MAX_SOURCE_BYTES} bytes"
            )
        yield name, text
