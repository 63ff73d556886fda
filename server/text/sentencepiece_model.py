"""A SentencePiece model file -> the library's tokenizer, without protobuf.

Decides what the file's own rules become. Knows nothing of folders.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from server.text.tokenizer_config import TokenizerConfig

SPACES_PATTERN = " {2,}"
_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4
_TURNS = ("<start_of_turn>", "<end_of_turn>")  # which Gemma's file calls user-defined


@dataclass(frozen=True, slots=True)
class Model:
    """The fields of sentencepiece_model.proto that change an id."""

    pieces: Sequence[tuple[str, float, int]]  # text, score, type
    model_type: int
    unk_id: int
    unk_piece: str
    has_byte_fallback: bool
    charsmap: bytes
    adds_dummy_prefix: bool
    removes_extra_spaces: bool

    @classmethod
    def read(cls, data: bytes) -> Model:
        """From the file's bytes; raises `ValueError` if they are none."""
        try:
            fields = _fields(data)
            pieces = [_piece(piece) for piece in fields.get(1, [])]
            trainer = _fields(fields.get(2, [b""])[-1])
            normalizer = _fields(fields.get(3, [b""])[-1])
            model = cls(
                pieces=pieces,
                model_type=trainer.get(3, [_UNIGRAM])[-1],
                unk_id=trainer.get(40, [0])[-1],
                unk_piece=trainer.get(45, [b"<unk>"])[-1].decode("utf-8"),
                has_byte_fallback=bool(trainer.get(35, [0])[-1]),
                charsmap=normalizer.get(2, [b""])[-1],
                adds_dummy_prefix=bool(normalizer.get(3, [1])[-1]),
                removes_extra_spaces=bool(normalizer.get(4, [1])[-1]),
            )
        except (IndexError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
            raise ValueError("it is not a SentencePiece model") from error
        if not pieces:
            raise ValueError("it is not a SentencePiece model: it has no pieces")
        if model.model_type not in (_UNIGRAM, _BPE):
            raise ValueError("it is a SentencePiece model of words or characters: BPE and unigram are read")
        if trainer.get(24, [0])[-1]:
            raise ValueError("treat_whitespace_as_suffix is set, which is not supported")
        return model


def build(model: Model, config: TokenizerConfig) -> tokenizers.Tokenizer:
    """The tokenizer that does what the file says, or what transformers makes of Llama's and Gemma's files.

    As in transformers, what stands between added tokens is a text of its own, with its own prefix space.
    """
    is_llama = config.kind in ("LlamaTokenizer", "CodeLlamaTokenizer")
    is_gemma = config.kind == "GemmaTokenizer"
    backend = tokenizers.Tokenizer(_model(model, config, is_llama=is_llama, is_gemma=is_gemma))
    backend.add_tokens([
        AddedToken(text, normalized=False, special=kind == _CONTROL or (is_gemma and text in _TURNS))
        for text, _, kind in model.pieces
        if kind in (_CONTROL, _USER_DEFINED)
    ])  # fmt: skip
    has_prefix = model.adds_dummy_prefix
    if is_gemma:
        has_prefix = False
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif is_llama:
        given = config.fields.get("add_prefix_space")
        has_prefix = True if given is None else bool(given)
        if config.fields.get("legacy") is False:
            scheme = "first" if has_prefix else "never"
            backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
        else:
            backend.normalizer = normalizers.Sequence(_spaces_as_marks(has_prefix))
    else:
        backend.normalizer = normalizers.Sequence([*_cleaning(model), *_spaces_as_marks(has_prefix)])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if has_prefix else steps)
    return backend


def merges_of(vocab: Mapping[str, int], by_priority: Iterable[str]) -> list[tuple[str, str]]:
    """BPE merges of a vocabulary that has none of its own: every way to make a token of two, best first."""
    merges: list[tuple[str, str]] = []
    for token in by_priority:
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += sorted(
            (pair for pair in pairs if pair[0] in vocab and pair[1] in vocab),
            key=lambda pair: (vocab[pair[0]], vocab[pair[1]]),
        )
    return merges


def _model(model: Model, config: TokenizerConfig, *, is_llama: bool, is_gemma: bool) -> models.Model:
    pieces = [(text, score) for text, score, _ in model.pieces]
    has_byte_fallback = model.has_byte_fallback or is_llama or is_gemma
    if is_gemma:  # whose first three names are the tokenizer's, and early files of which lack the tab
        pieces[:3] = [(str(config.roles[role]), 0.0) for role in ("pad_token", "eos_token", "bos_token")]
        if not any(text == "\t" for text, _ in pieces):
            pieces = [("\t", 0.0) if text == "<0x09>" else (text, score) for text, score in pieces]
    if model.model_type == _UNIGRAM:
        unk_id = 3 if is_gemma else 0 if is_llama else model.unk_id
        return models.Unigram(pieces, unk_id=unk_id, byte_fallback=has_byte_fallback)
    vocab = {text: token_id for token_id, (text, _) in enumerate(pieces)}
    merges = _merges_by_score(vocab, dict(pieces))
    return models.BPE(
        vocab, merges, unk_token=model.unk_piece, fuse_unk=True, byte_fallback=has_byte_fallback
    )


def _merges_by_score(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    merges = merges_of(vocab, scores)
    # Of equal scores, as transformers has it: longer parts first.
    return sorted(merges, key=lambda m: (scores[m[0] + m[1]], len(m[0]), len(m[1])), reverse=True)


def _spaces_as_marks(has_prefix: bool) -> list[Any]:
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    return [*prefix, normalizers.Replace(" ", _SPACE)]


def _cleaning(model: Model) -> list[Any]:
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.removes_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(SPACES_PATTERN), " ")]
    return steps


# ---- the wire format of protobuf ---------------------------------------------------------------------------


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = _fields(data)
    (score,) = struct.unpack("<f", fields.get(2, [b"\0\0\0\0"])[-1])
    return fields[1][-1].decode("utf-8"), score, fields.get(3, [1])[-1]


def _fields(data: bytes) -> dict[int, list[Any]]:
    """The values of each field by its number: an int, or bytes."""
    fields: dict[int, list[Any]] = {}
    for number, value in _each_field(data):
        fields.setdefault(number, []).append(value)
    return fields


def _each_field(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        match key & 7:
            case 0:
                value, place = _varint(data, place)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, place = _varint(data, place)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"it is not a SentencePiece model: it has a field of type {kind}")
        if place + size > len(data):
            raise ValueError("it is not a whole SentencePiece model: it ends within a field")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
