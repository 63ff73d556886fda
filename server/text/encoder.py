"""Where texts are encoded: here, or in a process of its own, whose time and memory have limits.

Decides which tokenizers are trusted with the front's own threads. A folder's tokenizer may hold regular
expressions, and one such as `a+a+b` takes minutes for 4,000 characters; a thread in it cannot be stopped.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from server.text.helper import Helper
from server.text.token_length import steps_of

Spans = list[tuple[int, tuple[int, int]]]

MAX_BYTES = 4 << 30  # of address space; the largest vocabularies take less than one
_MAX_WALL_S = 60.0  # where the processor is busy with others
# Normalizers and pre-tokenizers; not among them is a table that may make much of little.
_TAME = frozenset({
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Prepend", "Replace",
    "BertNormalizer", "ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Digits",
    "Punctuation", "Metaspace", "CharDelimiterSplit", "UnicodeScripts", "Split",
})  # fmt: skip
# Characters that no vocabulary has, so that a missing unk token is found when the tokenizer is loaded.
ANY_TEXT = "a \n\0\ud7ff\U0010ffff"


class EncodeError(ValueError):
    """A text cannot be encoded. The message follows the name of the text, and a client may read it."""


class Encoding(msgspec.Struct, array_like=True):
    """The ids of a text, and the characters `start` to `stop` of it that each stands for, if asked for."""

    ids: list[int]
    offsets: list[tuple[int, int]] = []
    error: str = ""


class Question(msgspec.Struct, array_like=True):
    """What the process is asked. It answers with an `Encoding`."""

    text: str
    add_special_tokens: bool
    has_offsets: bool
    max_cpu_s: float


def is_failure(error: BaseException) -> bool:
    """Whether it is an exception, or a panic of the library's Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def encode(backend: tokenizers.Tokenizer, question: Question) -> Encoding:
    """Do it here; the library's failures, panics among them, become the answer's error."""
    # Of the library's calls, only those for a batch release the GIL: others would freeze every stream.
    call = backend.encode_batch if question.has_offsets else backend.encode_batch_fast
    try:
        (encoding,) = call([question.text], add_special_tokens=question.add_special_tokens)
    except BaseException as error:
        if not is_failure(error):
            raise
        return Encoding([], error="cannot be cut into tokens: the model's tokenizer fails on this text")
    return Encoding(encoding.ids, encoding.offsets if question.has_offsets else [])


def max_cpu_s(text: str) -> float:
    """The processor's time that a text may take: several times what the slowest real tokenizers need."""
    return 1.0 + 5e-6 * len(text)


def is_tame(backend: tokenizers.Tokenizer, known_patterns: Collection[str]) -> bool:
    """Whether a text's length bounds its time and memory: no expressions but those known to be quick."""
    steps = [*steps_of(backend.normalizer), *steps_of(backend.pre_tokenizer)]
    return all(step["type"] in _TAME and _is_tame(step, known_patterns) for step in steps)


def _is_tame(step: Mapping[str, Any], known_patterns: Collection[str]) -> bool:
    """Whether it has no expression of its own, and lets no text grow, which step after step could repeat."""
    expression = step.get("pattern", {}).get("Regex")
    if expression is not None and expression not in known_patterns:
        return False
    grows_from = step.get("pattern", {}).get("String", " ")
    return len(step.get("content", "")) <= len(grows_from) and len(step.get("prepend", "")) <= 1


class GuardedEncoder:
    """Encodes a folder's texts in a process that ends when it takes too long. Threads take turns."""

    def __init__(self, folder: Path) -> None:
        """The process starts with the first text, and again after one that it did not survive."""
        self._folder = folder
        self._turn = threading.Lock()
        self._helper = Helper("server.text.encoder_process", _MAX_WALL_S)

    def encode(self, question: Question) -> Encoding:
        """As `encode` above."""
        with self._turn:
            if not self._helper.is_alive:
                self._helper.start()
                self._helper.exchange(json.dumps(str(self._folder)).encode() + b"\n")
            line = self._helper.exchange(msgspec.json.encode(question) + b"\n")
            if line.endswith(b"\n"):
                return msgspec.json.decode(line, type=Encoding)
            status = self._helper.end()
        why = "cannot be cut into tokens: it ends the process of the model's tokenizer"
        if status == -signal.SIGPROF:
            why = f"takes the model's tokenizer more than {question.max_cpu_s:.1f} s of processor time"
        elif status == -signal.SIGKILL:
            why = f"takes the model's tokenizer more than {_MAX_WALL_S:g} s"
        return Encoding([], error=why)

    def __del__(self) -> None:
        """End the process."""
        self._helper.end()
