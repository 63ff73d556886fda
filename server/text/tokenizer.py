"""Text to ids and back, whole, by a model folder's tokenizer.json.

Decides what each token is worth in bytes or characters. Knows nothing of streams, stop strings or templates.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tokenizers

Piece = bytes | str
"""What one token adds to a text: bytes, perhaps of a part of a character only, or whole characters."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPED_BYTE = re.compile(r"[\udc80-\udcff]")
_SPACE = "\u2581"
_BYTE_FALLBACK = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_ONE_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class TokenSpan(msgspec.Struct, frozen=True, gc=False):
    """One token of a text and the characters `start` to `stop` of it (exclusive) that the token touches."""

    id: int
    text: str
    start: int
    stop: int


class TextDecoder:
    """Turns pieces, one by one, into text of whole characters; bytes that are not UTF-8 become U+FFFD.

    `errors` is how the codec treats those bytes: "replace" gives one U+FFFD for each maximal part of a
    character (WHATWG), "surrogateescape" leads to one for each byte. `lead` is taken off the front of the
    first text. `before` are the last pieces of a text that this one continues: an unfinished character
    at their end is finished here.
    """

    def __init__(self, errors: str, lead: str, before: Sequence[Piece]) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._lead = lead
        for piece in before:
            self._decode(piece)
        if before:  # which already shows its unfinished character as U+FFFD
            self._lead = _replace_escaped(self._unfinished.decode("utf-8", errors))

    @property
    def is_unfinished(self) -> bool:
        """Whether the pieces so far end in the middle of a character."""
        return bool(self._unfinished)

    def feed(self, piece: Piece) -> str:
        """The characters that this piece completes."""
        return self._without_lead(self._decode(piece))

    def finish(self) -> str:
        """What an unfinished character comes to when nothing follows it."""
        return self.feed("")

    @property
    def _unfinished(self) -> bytes:
        return self._utf8.getstate()[0]

    def _decode(self, piece: Piece) -> str:
        if isinstance(piece, str):
            text = self._utf8.decode(b"", final=True) + piece
        else:
            text = self._utf8.decode(piece)
        return _replace_escaped(text)

    def _without_lead(self, text: str) -> str:
        if text and self._lead:
            text = text.removeprefix(self._lead)
            self._lead = ""
        return text


class Tokenizer:
    """The tokenizer of one model folder; immutable, safe to share between threads.

    Two kinds are understood, which the causal language models use: byte-level BPE (GPT-2), and
    SentencePiece style with byte fallback (Llama 2). Truncation and padding set in the file are switched off.

    Whole decoding equals the library's, but for one case: where byte-fallback tokens in a row are partly
    valid UTF-8, only the invalid bytes become U+FFFD, as SentencePiece has it; the library gives up the whole
    row, so that no character of it could be shown before its end.
    """

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json`; raises `ValueError` naming the file and the cause."""
        path = folder / "tokenizer.json"
        try:
            source = path.read_text(encoding="utf-8")
            self._backend = tokenizers.Tokenizer.from_str(source)
            document = json.loads(source)
            spelling = _read_spelling(document["decoder"])
            own_tokens = self._backend.get_vocab(with_added_tokens=False)
            self._max_token_bytes = _max_token_bytes(document, own_tokens)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"cannot load {path}: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._errors = spelling.errors
        self._lead = spelling.lead
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._pieces: list[Piece] = [b""] * (1 + max(vocabulary.values(), default=-1))
        for token, token_id in vocabulary.items():
            self._pieces[token_id] = spelling.piece(token)
        self._special_texts: dict[int, str] = {
            token_id: token.content
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }

    @property
    def vocab_size(self) -> int:
        """One more than the highest id. Ids in between that stand for nothing decode to nothing."""
        return len(self._pieces)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. Special tokens spelled out in it become their ids."""
        # Of the library's calls, only those for a batch release the GIL: others would freeze every stream.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def min_num_tokens(self, text: str) -> int:
        """A lower bound on the tokens of a text, from its length alone; 0 if this vocabulary has none."""
        return -(-len(text.encode("utf-8")) // self._max_token_bytes) if self._max_token_bytes else 0

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> list[TokenSpan]:
        """The ids of a text, each with the slice of it that it stands for.

        Tokens that share a character each name the whole of it, so slices may overlap. A token that stands
        for nothing in the text, as an added special token, has an empty slice.
        """
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return [
            TokenSpan(token_id, text[start:stop], start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids, taken as a whole text. Unknown ids add nothing."""
        decoder = self.text_decoder()
        texts = [
            decoder.feed(self.piece(token_id))
            for token_id in ids
            if not (skip_special_tokens and self.is_special(token_id))
        ]
        return "".join(texts) + decoder.finish()

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, which is no part of a text."""
        return token_id in self._special_texts

    def piece(self, token_id: int) -> Piece:
        """What the token adds within a text; empty for an unknown id."""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else b""

    def token_text(self, token_id: int) -> str:
        """One token as it reads within a text: its leading space stays; part of a character is U+FFFD."""
        if token_id in self._special_texts:
            return self._special_texts[token_id]
        decoder = TextDecoder(self._errors, lead="", before=())
        return decoder.feed(self.piece(token_id)) + decoder.finish()

    def text_decoder(self, prompt_ids: Sequence[int] = ()) -> TextDecoder:
        """A decoder that goes on where the prompt ends.

        An unfinished character has at most three bytes, so the last three tokens with text tell it all.
        """
        pieces = (self.piece(token_id) for token_id in reversed(prompt_ids) if not self.is_special(token_id))
        last = list(islice((piece for piece in pieces if piece), 3))
        return TextDecoder(self._errors, self._lead, before=last[::-1])


class _Spelling(NamedTuple):
    """How a vocabulary spells bytes and characters."""

    piece: Callable[[str], Piece]
    errors: str  # how the codec treats bytes that are not UTF-8
    lead: str  # what decoding takes off the front of a text


def _read_spelling(decoder: dict[str, Any] | None) -> _Spelling:
    """From the `decoder` entry of a tokenizer.json; raises `ValueError` for one that is not understood."""
    match decoder:
        case {"type": "ByteLevel"}:
            alphabet = _byte_level_alphabet()
            return _Spelling(lambda token: _byte_level_piece(token, alphabet), errors="replace", lead="")
        case {"type": "Sequence", "decoders": steps} if steps == _BYTE_FALLBACK:
            return _Spelling(_byte_fallback_piece, errors="surrogateescape", lead="")
        case {"type": "Sequence", "decoders": steps} if steps == [*_BYTE_FALLBACK, _STRIP_ONE_SPACE]:
            return _Spelling(_byte_fallback_piece, errors="surrogateescape", lead=" ")
    raise ValueError(f"its decoder is not supported: {json.dumps(decoder)}")


def _max_token_bytes(document: Mapping[str, Any], own_tokens: Iterable[str]) -> int | None:
    """The most bytes of a text that one token can stand for; None if a tokenizer.json leaves that open.

    It does so where a text may lose bytes on its way to the model (Unicode normalization, pre-tokenizers
    that drop spaces), where unknown characters are dropped or fused, and where an added token takes in the
    spaces beside it.
    """
    model, added = document["model"], document.get("added_tokens", [])
    steps = [*_steps(document.get("normalizer")), *_steps(document.get("pre_tokenizer"))]
    is_byte_level = bool(steps) and steps[-1]["type"] == "ByteLevel"
    if is_byte_level:
        bytes_as_tokens = set(_byte_level_alphabet())
    elif model.get("byte_fallback"):
        bytes_as_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        return None
    has_bound = (
        model.get("type") == "BPE"
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and bytes_as_tokens.issubset(own_tokens)  # so that nothing is unknown
        and all(map(_keeps_every_byte, steps))
        and not any(token.get("lstrip") or token.get("rstrip") for token in added)
        and not (document.get("normalizer") and any(token.get("normalized") for token in added))
    )
    if not has_bound:
        return None
    # In a byte-level vocabulary each byte of a text is spelled as one character.
    own_lengths = (len(token if is_byte_level else token.encode("utf-8")) for token in own_tokens)
    return max(chain(own_lengths, (len(token["content"].encode("utf-8")) for token in added)))


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as what it does one after the other."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part.get("normalizers") or part["pretokenizers"] for step in _steps(inner)]


def _keeps_every_byte(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": " "}, _SPACE)
    return step["type"] in ("ByteLevel", "Digits", "Metaspace", "Prepend")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: a printable byte is its own Latin-1 character, the others follow from U+0100 in order."""
    characters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    printable = {character: ord(character) for character in characters if ord(character) < 256}
    others = (byte for byte in range(256) if chr(byte) not in printable)
    return printable | dict(zip(characters[len(printable) :], others, strict=True))


def _byte_level_piece(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # an added token, spelled as it is
        return token.encode("utf-8")


def _byte_fallback_piece(token: str) -> Piece:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token.replace(_SPACE, " ")


def _replace_escaped(text: str) -> str:
    return _ESCAPED_BYTE.sub("\ufffd", text)
