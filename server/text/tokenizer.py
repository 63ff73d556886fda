"""Text to ids and back, whole, by the tokenizer of a model folder.

Decides what each token is worth in bytes or characters. Knows nothing of streams, stop strings or templates.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from server.text.encoder import (
    ANY_TEXT,
    EncodeError,
    Encoding,
    GuardedEncoder,
    Question,
    encode,
    is_tame,
    max_cpu_s,
)
from server.text.spelling import Piece, read_spelling
from server.text.token_length import max_token_bytes
from server.text.tokenizer_files import KNOWN_PATTERNS, load_backend

_ESCAPED_BYTE = re.compile(r"[\udc80-\udcff]")


class TokenSpan(msgspec.Struct, frozen=True, gc=False):
    """One token of a text and the characters `start` to `stop` of it (exclusive) that the token touches."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """The tokenizer of one model folder; immutable, safe to share between threads.

    Whole decoding equals the library's, but for one case: where byte-fallback tokens in a row are partly
    valid UTF-8, only the invalid bytes become U+FFFD, as SentencePiece has it; the library gives up the whole
    row, so that no character of it could be shown before its end.
    """

    def __init__(self, folder: Path) -> None:
        """Read the folder's files; raises `ValueError` naming the file and the cause."""
        self._backend, config = load_backend(folder)
        decoder = self._backend.decoder
        try:  # the library's own state of it is the `decoder` entry of a tokenizer.json
            self.spelling = read_spelling(None if decoder is None else json.loads(decoder.__getstate__()))
        except ValueError as error:
            raise ValueError(f"cannot load {folder / 'tokenizer.json'}: {error}") from error
        self.special_tokens = config.special_tokens
        """By their roles, as chat templates name them: `bos_token`, `eos_token` and so on."""
        self.is_tame = is_tame(self._backend, KNOWN_PATTERNS)
        """Whether any text is encoded quickly; else it is done in a process that can be ended."""
        self._guarded = None if self.is_tame else GuardedEncoder(folder)
        if self._guarded is not None:
            try:
                self.encode(ANY_TEXT)
            except EncodeError as error:
                raise ValueError(f"cannot load {folder / 'tokenizer.json'}: a short text {error}") from error
        self._max_token_bytes = max_token_bytes(self._backend)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._tokens: list[str | None] = [None] * (1 + max(vocabulary.values(), default=-1))
        for token, token_id in vocabulary.items():
            self._tokens[token_id] = token
        self._pieces = [b"" if token is None else self.spelling.piece(token) for token in self._tokens]
        added = self._backend.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special]
        self._special_texts: dict[int, str] = {vocabulary[content]: content for content in special}

    @property
    def vocab_size(self) -> int:
        """One more than the highest id. Ids in between that stand for nothing decode to nothing."""
        return len(self._tokens)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. Special tokens spelled out in it become their ids. Raises `EncodeError`."""
        return self._encode(text, add_special_tokens, has_offsets=False).ids

    def min_num_tokens(self, text: str) -> int:
        """A lower bound on the tokens of a text, from its length alone; 0 if this vocabulary has none."""
        return -(-len(text.encode("utf-8")) // self._max_token_bytes) if self._max_token_bytes else 0

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> list[TokenSpan]:
        """The ids of a text, each with the slice of it that it stands for.

        Tokens that share a character each name the whole of it, so slices may overlap. A token that stands
        for nothing in the text, as an added special token, has an empty slice. Raises `EncodeError`.
        """
        encoding = self._encode(text, add_special_tokens, has_offsets=True)
        return [
            TokenSpan(token_id, text[start:stop], start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids, taken as a whole text. Unknown ids add nothing."""
        decoder = self.text_decoder()
        texts = [
            decoder.feed(token_id)
            for token_id in ids
            if not (skip_special_tokens and self.is_special(token_id))
        ]
        return "".join(texts) + decoder.finish()

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, which is no part of a text."""
        return token_id in self._special_texts

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an unknown id."""
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else None

    def piece(self, token_id: int) -> Piece:
        """What the token adds within a text; empty for an unknown id."""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else b""

    def token_text(self, token_id: int) -> str:
        """One token as it reads within a text: its leading space stays; part of a character is U+FFFD."""
        if token_id in self._special_texts:
            return self._special_texts[token_id]
        piece = self.piece(token_id)
        return _replace_escaped(
            piece if isinstance(piece, str) else piece.decode(errors=self.spelling.errors)
        )

    def text_decoder(self, prompt_ids: Sequence[int] = ()) -> TextDecoder:
        """A decoder that goes on where the prompt ends.

        An unfinished character has at most three bytes, so the last three tokens with text tell it all.
        """
        last: list[int] = []
        num_with_text = 0
        for token_id in reversed(prompt_ids):
            if self.token(token_id) is not None and not self.is_special(token_id):
                last.append(token_id)
                num_with_text += bool(self.piece(token_id))
                if num_with_text == 3:
                    break
        return TextDecoder(self, before=last[::-1])

    def _encode(self, text: str, add_special_tokens: bool, *, has_offsets: bool) -> Encoding:
        question = Question(text, add_special_tokens, has_offsets, max_cpu_s(text))
        encoding = self._guarded.encode(question) if self._guarded else encode(self._backend, question)
        if encoding.error:
            raise EncodeError(encoding.error)
        return encoding


class TextDecoder:
    """Turns tokens, one by one, into text of whole characters; bytes that are not UTF-8 become U+FFFD.

    The spelling's `errors` is how the codec treats those bytes: "replace" gives one U+FFFD for each maximal
    part of a character (WHATWG), "surrogateescape" leads to one for each byte. `before` are the last tokens
    of a text that this one continues: an unfinished character at their end is finished here.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._spelling = tokenizer.spelling
        self._utf8 = codecs.getincrementaldecoder("utf-8")(self._spelling.errors)
        self._lead = self._spelling.lead
        self._is_first = not before
        self._has_gap = False
        for token_id in before:
            self._decode(token_id)
        if any(map(tokenizer.piece, before)):  # which already show their unfinished character as U+FFFD
            self._lead = _replace_escaped(self._unfinished.decode("utf-8", self._spelling.errors))

    @property
    def is_unfinished(self) -> bool:
        """Whether the tokens so far end in the middle of a character."""
        return bool(self._unfinished)

    def feed(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._polished(self._decode(token_id))

    def finish(self) -> str:
        """What an unfinished character comes to when nothing follows it."""
        return self._polished(self._utf8.decode(b"", final=True))

    @property
    def _unfinished(self) -> bytes:
        return self._utf8.getstate()[0]

    def _decode(self, token_id: int) -> str:
        token = self._tokenizer.token(token_id)
        if token is None:
            return ""
        piece = (
            self._spelling.piece(token, is_first=True) if self._is_first else self._tokenizer.piece(token_id)
        )
        if self._has_gap and isinstance(piece, str):
            piece = " " + piece
        self._is_first = False
        self._has_gap = self._spelling.has_gap_after(token)
        if isinstance(piece, bytes):
            return self._utf8.decode(piece)
        return self._utf8.decode(b"", final=True) + piece if piece else ""

    def _polished(self, text: str) -> str:
        text = _replace_escaped(text)
        for old, new in self._spelling.replaced:
            text = text.replace(old, new)
        while text and self._lead:
            text, self._lead = (text[1:], self._lead[1:]) if text[0] == self._lead[0] else (text, "")
        return text


def _replace_escaped(text: str) -> str:
    return _ESCAPED_BYTE.sub("\ufffd", text)
