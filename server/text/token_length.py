"""The most bytes of a text that one token can stand for, by which a text too long is refused unread.

Decides it from what the tokenizer does to a text. Knows nothing of ids or of any text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import tokenizers

from server.text.spelling import byte_level_alphabet

_SPACE = "\u2581"
_NFC = {"type": "NFC"}
_MOST_COMPOSED = 4  # bytes that NFC can make one of: 3.5, of U+1FBE U+0308 U+0341 (7 bytes) U+0390 (2)


def max_token_bytes(backend: tokenizers.Tokenizer) -> int | None:
    """None if the tokenizer leaves it open.

    It does so where a text may lose bytes on its way to the model (Unicode normalization but NFC,
    pre-tokenizers that drop spaces), where unknown characters are dropped or fused, and where an added
    token takes in the spaces beside it.
    """
    own_tokens = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder().values()
    steps = [*steps_of(backend.normalizer), *steps_of(backend.pre_tokenizer)]
    is_byte_level = bool(steps) and steps[-1]["type"] == "ByteLevel"
    if not isinstance(backend.model, tokenizers.models.BPE):
        return None
    if is_byte_level:
        bytes_as_tokens = set(byte_level_alphabet())
    elif backend.model.byte_fallback:
        bytes_as_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        return None
    has_bound = (
        not (backend.model.continuing_subword_prefix or backend.model.end_of_word_suffix)
        and bytes_as_tokens.issubset(own_tokens)  # so that nothing is unknown
        and all(map(_keeps_every_byte, steps))
        and not any(token.lstrip or token.rstrip for token in added)
        and not (backend.normalizer and any(token.normalized for token in added))
    )
    if not has_bound:
        return None
    # In a byte-level vocabulary each byte of a text is spelled as one character.
    own_lengths: Iterable[int] = (
        len(token if is_byte_level else token.encode("utf-8")) for token in own_tokens
    )
    longest = max(chain(own_lengths, (len(token.content.encode("utf-8")) for token in added)))
    return longest * (_MOST_COMPOSED if _NFC in steps else 1)


def steps_of(part: Any) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as what it does one after the other."""
    return [] if part is None else _flat(json.loads(part.__getstate__()))  # its entry in a tokenizer.json


def _flat(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part.get("normalizers", part.get("pretokenizers", [])) for step in _flat(inner)]


def _keeps_every_byte(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": " "}, _SPACE)
    return step == _NFC or step["type"] in ("ByteLevel", "Digits", "Metaspace", "Prepend")
