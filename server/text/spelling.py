"""What a token adds to a text, as the `decoder` of a tokenizer.json says it, step by step.

Decides which decoders can be followed token by token. Knows nothing of ids, prompts or streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

Piece = bytes | str
"""What one token adds to a text: bytes, perhaps of a part of a character only, or whole characters."""

_Change = Callable[[str], Piece]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MAX_STRIPPED = 64  # characters, of a number that a file can set to anything


@dataclass(slots=True)
class Spelling:
    """How a vocabulary spells bytes and characters."""

    errors: str = "replace"  # how the codec treats bytes that are not UTF-8
    lead: str = ""  # so much of this as a text begins with is taken off it
    replaced: list[tuple[str, str]] = field(default_factory=list)  # characters of the whole text
    gap_after: str | None = None  # a token that ends so is followed by a space, if by anything
    _within: list[_Change] = field(default_factory=list)
    _first: list[_Change] = field(default_factory=list)

    def piece(self, token: str, is_first: bool = False) -> Piece:
        """What the token adds within a text, or at its beginning."""
        piece: Piece = token
        for change in self._first if is_first else self._within:
            if isinstance(piece, str):
                piece = change(piece)
        return piece

    def has_gap_after(self, token: str) -> bool:
        """Whether a space follows the token once another token does."""
        return self.gap_after is not None and token.endswith(self.gap_after)

    def then(self, within: _Change, first: _Change | None = None) -> None:
        """Add a change to what a token is."""
        self._within.append(within)
        self._first.append(first or within)


def read_spelling(decoder: Mapping[str, Any] | None) -> Spelling:
    """From the `decoder` entry of a tokenizer.json; raises `ValueError` for one that is not understood.

    Not understood is what depends on tokens that are yet to come: a `Strip` at the end of the text, a
    `Replace` of several characters across tokens, and `CTC`, which is for speech.
    """
    if decoder is None:  # the library joins the tokens with spaces
        return Spelling(gap_after="")
    spelling = Spelling()
    is_joined = False
    for step in _steps(decoder):
        if step["type"] == "Fuse":
            is_joined = True
        elif not (_change_text if is_joined else _change_tokens)(spelling, step):
            raise ValueError(f"its decoder is not supported: {json.dumps(decoder)}")
        elif step["type"] == "ByteLevel":
            is_joined = True
    return spelling


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: a printable byte is its own Latin-1 character, the others follow from U+0100 in order."""
    characters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    printable = {character: ord(character) for character in characters if ord(character) < 256}
    others = (byte for byte in range(256) if chr(byte) not in printable)
    return printable | dict(zip(characters[len(printable) :], others, strict=True))


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _steps(inner)
    else:
        yield decoder


def _change_tokens(spelling: Spelling, step: Mapping[str, Any]) -> bool:
    """Follow a step that sees one token after the other; whether it is understood."""
    match step:
        case {"type": "ByteLevel"}:
            alphabet = byte_level_alphabet()
            spelling.then(lambda token: _byte_level_piece(token, alphabet))
        case {"type": "ByteFallback"}:
            spelling.errors = "surrogateescape"
            spelling.then(_byte_fallback_piece)
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            spelling.then(lambda token: token.replace(old, new))
        case {"type": "Replace", "pattern": {"Regex": pattern}, "content": new}:
            by_library = tokenizers.decoders.Replace(tokenizers.Regex(pattern), new)
            spelling.then(lambda token: _decode(by_library, token))
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            by_library = tokenizers.decoders.Strip(content, start, stop)
            spelling.then(lambda token: _decode(by_library, token))
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            at_first = " " if scheme == "never" else ""
            spelling.then(lambda token: token.replace(mark, " "), lambda token: token.replace(mark, at_first))
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            words = tokenizers.decoders.WordPiece(prefix, cleanup)
            spelling.then(lambda token: _decode(words, "", token), lambda token: _decode(words, token))
        case {"type": "BPEDecoder", "suffix": suffix} if suffix:
            spelling.gap_after = suffix
            spelling.then(lambda token: token.removesuffix(suffix).replace(suffix, " "))
        case _:
            return False
    return True


def _change_text(spelling: Spelling, step: Mapping[str, Any]) -> bool:
    """Follow a step that sees the text whole; whether it is understood."""
    match step:
        case {"type": "Strip", "content": content, "start": start, "stop": 0} if start <= _MAX_STRIPPED:
            spelling.lead += content * start
        case {"type": "Replace", "pattern": {"String": old}, "content": new} if len(old) == 1:
            spelling.replaced.append((old, new))
            return not spelling.lead  # what was taken off the front must not depend on what it became
        case _:
            return False
    return True


def _decode(by_library: Any, *tokens: str) -> str:
    text: str = by_library.decode(list(tokens))
    return text


def _byte_level_piece(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # an added token, spelled as it is
        return token.encode("utf-8")


def _byte_fallback_piece(token: str) -> Piece:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token
