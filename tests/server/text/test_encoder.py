"""Tokenizers made to take for ever, to grow without end or to panic: each costs its own text an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from server.text.encoder import EncodeError, is_tame
from server.text.tokenizer import Tokenizer
from server.text.tokenizer_files import CL100K_PATTERN, KNOWN_PATTERNS
from tests.server.live import byte_tokenizer, hostile_tokenizer

ENDLESS, PANICKING = "a+a+b|x", "(a|aa)+c"  # on many times "a"
DOUBLED = normalizers.Replace("b", "bb")

Load = Callable[..., Tokenizer]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr("server.text.tokenizer.max_cpu_s", lambda text: 0.3)
    return lambda **parts: hostile_tokenizer(tmp_path, **parts)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


@pytest.mark.parametrize(
    ("parts", "text"),
    [({"pattern": ENDLESS}, "a" * 3000), ({"normalizer": normalizers.Sequence([DOUBLED] * 40)}, "b")],
    ids=["endless", "growing"],
)
def test_a_text_that_takes_too_long_is_given_up_and_the_next_one_is_not(
    parts: dict[str, object], text: str, load: Load
) -> None:
    tokenizer = load(**parts)
    began_s = time.process_time()
    with pytest.raises(
        EncodeError, match=r"^takes the model's tokenizer more than 0\.3 s of processor time$"
    ):
        tokenizer.encode(text)
    assert time.process_time() - began_s < 0.3  # it was another process that worked
    assert tokenizer.encode("x a") == byte_tokenizer().encode("x a")
    assert tokenizer.encode_with_offsets("aé") == byte_tokenizer().encode_with_offsets("aé")


def test_a_panic_is_an_error_of_its_text_alone(load: Load) -> None:
    tokenizer = load(pattern=PANICKING)
    process = tokenizer._guarded._helper.process if tokenizer._guarded else None
    for _ in range(2):
        with pytest.raises(EncodeError, match=r"^cannot be cut into tokens: the model's tokenizer fails on"):
            tokenizer.encode("a" * 100)
        assert tokenizer.encode("x") == byte_tokenizer().encode("x")
    assert process is not None
    assert process.poll() is None  # a panic is no reason to load it again


def test_a_panic_of_a_tokenizer_that_is_trusted_is_an_error_too(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.text.tokenizer.is_tame", lambda backend, patterns: True)
    with pytest.raises(EncodeError, match=r"fails on this text$"):
        load(pattern=PANICKING).encode("a" * 100)


def test_a_tokenizer_that_fails_on_any_text_is_refused_when_it_is_loaded(tmp_path: Path, load: Load) -> None:
    with pytest.raises(ValueError, match=r"^cannot load .*tokenizer\.json: a short text takes the model's"):
        load(normalizer=normalizers.Sequence([normalizers.Replace("a", "aa")] * 40))


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "expected"),
    [
        (None, None, True),
        (normalizers.NFC(), pre_tokenizers.ByteLevel(), True),
        (normalizers.Replace(" ", "\u2581"), pre_tokenizers.Split(" ", "merged_with_previous"), True),
        (normalizers.Prepend("\u2581"), pre_tokenizers.Metaspace(), True),
        (None, split(CL100K_PATTERN), True),
        (None, split(CL100K_PATTERN + "?"), False),
        (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(), split("a+a+b")]), False),
        (normalizers.Replace(Regex("a+a+b"), ""), None, False),
        (normalizers.Sequence([normalizers.NFC(), DOUBLED]), None, False),
        (normalizers.Prepend("ab"), None, False),
        (normalizers.Replace("", " "), None, False),
    ],
)  # fmt: skip
def test_what_is_trusted_holds_no_expression_that_is_not_known_and_lets_no_text_grow(
    normalizer: object, pre_tokenizer: object, expected: bool
) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    assert is_tame(backend, KNOWN_PATTERNS) == expected
