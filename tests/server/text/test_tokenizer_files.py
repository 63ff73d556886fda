"""Folders of each kind against who reads them elsewhere: transformers, SentencePiece, tiktoken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import combining, is_normalized, normalize

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from server.text.detokenizer import StreamText
from server.text.spelling import read_spelling
from server.text.token_length import _MOST_COMPOSED
from server.text.tokenizer import Tokenizer
from tests.server.text.folders import BUILDERS, SENTENCES, ranks_of, saved_byte_level, sentencepiece, write

PARTS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "a", "b c", "Hello", "don't", "DON'T", "123", "4567"),
    *("é", "e\u0301", "\u212b", "\u1e9b\u0323", "中", "東京", "👍", "👩🏽‍🚀", "\u2581"),
    *("\ufb01", "\u0130", "<", ">", ".", " ,", "\0", "\ufffd", "\u200b", "\u3000", "ﷺ", "_"),
    *("</w>", "##a", "<0x41>", "Ġ"),
]  # fmt: skip


class Pair:
    """A folder as we read it and as transformers does."""

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.name = name
        self.ours = Tokenizer(folder)
        self.theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.library: tokenizers.Tokenizer = self.theirs.backend_tokenizer

    def texts(self, num: int) -> list[str]:
        rng = random.Random(0)
        parts = [*PARTS, *self.theirs.get_added_vocab(), *self.theirs.all_special_tokens]
        return ["".join(rng.choices(parts, k=rng.randrange(12))) for _ in range(num)]

    def ids(self, num: int) -> list[list[int]]:
        """Lists of any ids, but for byte tokens beside each other: of those, ours tells more."""
        rng = random.Random(0)
        has_bytes = any(step == {"type": "ByteFallback"} for step in steps(self.library.decoder))
        any_id = [
            i
            for i in range(self.ours.vocab_size + 2)
            if not (has_bytes and isinstance(self.ours.piece(i), bytes))
        ]
        return [rng.choices(any_id, k=rng.randrange(9)) for _ in range(num)]


def steps(decoder: Any) -> list[dict[str, Any]]:
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    return list(state.get("decoders", [state]))


@pytest.fixture(scope="session")
def pairs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp("folder")
            BUILDERS[name](shared_data, folder)
            made[name] = Pair(name, folder)
        return made[name]

    return pair


@pytest.fixture(scope="module", params=BUILDERS)  # so all tests of one run one after another
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


@pytest.mark.no_cover
def test_texts_become_the_ids_that_transformers_gives_them(pair: Pair, shared_data: Path) -> None:
    hostile = json.loads((shared_data / "robustness/blns.json").read_text(encoding="utf-8"))
    for text in [*pair.texts(300), *SENTENCES, *hostile]:
        assert pair.ours.encode(text) == pair.theirs.encode(text), text
        expected = pair.theirs.encode(text, add_special_tokens=False)
        assert pair.ours.encode(text, add_special_tokens=False) == expected, text


def test_special_tokens_are_those_of_transformers(pair: Pair) -> None:
    assert pair.ours.special_tokens == pair.theirs.special_tokens_map
    special = {i for i, token in pair.library.get_added_tokens_decoder().items() if token.special}
    assert {i for i in range(pair.ours.vocab_size) if pair.ours.is_special(i)} == special


def test_whole_decoding_is_the_librarys(pair: Pair) -> None:
    for ids in pair.ids(300):
        for skip in (True, False):
            expected = pair.library.decode(ids, skip_special_tokens=skip)
            assert pair.ours.decode(ids, skip_special_tokens=skip) == expected, ids


def test_a_stream_tells_the_whole_decoding_and_takes_nothing_back(pair: Pair, shared_data: Path) -> None:
    hostile = json.loads((shared_data / "robustness/blns.json").read_text(encoding="utf-8"))
    encoded = [pair.ours.encode(text) for text in hostile[::5]]
    rng = random.Random(0)
    for ids in [*pair.ids(200), *encoded]:
        prompt, generated = ids[: (cut := rng.randrange(len(ids) + 1))], ids[cut:]
        stream = StreamText(pair.ours, prompt)
        whole = pair.ours.decode(ids)
        for token_id in generated:
            stream.push(token_id)
            assert "\ufffd" not in stream.text or "\ufffd" in whole
        stream.finish()
        before = pair.ours.decode(prompt)
        assert whole == before + stream.text or (before.endswith("\ufffd") and whole.endswith(stream.text))


# Files that transformers does not read by itself, against the libraries they come from


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
        {"byte_fallback": False, "vocab_size": 80},
    ],
)
def test_a_sentencepiece_file_does_what_its_library_does(
    model_type: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import sentencepiece as library

    sentencepiece(model_type, "", **options)(tmp_path, tmp_path)
    processor = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = Tokenizer(tmp_path)
    rng = random.Random(0)
    # Not: what its bindings cut, or spell as it is, and marks, which the `Precompiled` normalizer of the
    # tokenizers library, and so transformers, takes together with their letter.
    parts = [part for part in PARTS if part not in ("\0", "<0x41>") and not any(map(combining, part))]
    for text in ["".join(rng.choices(parts, k=rng.randrange(12))) for _ in range(400)] + SENTENCES:
        assert ours.encode(text, add_special_tokens=False) == processor.encode(text), text


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_a_tiktoken_file_does_what_tiktoken_does(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With GPT-2's ranks under each name: the patterns and the special tokens go with the name."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext import openai_public

    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(ranks_of(shared_data / "tokenizers/gpt2/vocab.json"))
    ranks = load_tiktoken_bpe(str(path))
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    library = tiktoken.Encoding(**(openai_public.ENCODING_CONSTRUCTORS[name]() | {"explicit_n_vocab": None}))
    ours = Tokenizer(tmp_path)
    rng = random.Random(0)
    parts = [*PARTS, "'s", "'LL", "ÉTÉ", "x/", "//\n", "\r", "\u0301", *library.special_tokens_set]
    for text in ["".join(rng.choices(parts, k=rng.randrange(12))) for _ in range(1000)]:
        assert ours.encode(text) == library.encode(text, allowed_special="all"), text
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


@pytest.mark.no_cover
def test_qwens_ranks_give_the_ids_of_qwen2(
    pairs: Callable[[str], Pair], shared_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(ranks_of(shared_data / "tokenizers/qwen2/vocab.json"))
    ours, qwen2 = Tokenizer(tmp_path), pairs("qwen2")
    for text in qwen2.texts(300):
        if is_normalized("NFC", text):  # which Qwen2 does before, and Qwen did not
            assert ours.encode(text) == qwen2.ours.encode(text), text
    assert ours.token_text(151_643 + 3 + 204) == "<|extra_204|>"


def test_a_text_that_nfc_shrinks_has_no_fewer_tokens_than_its_bound(tmp_path: Path) -> None:
    merges = [
        ("Ã", "©"),
        *(("Ã©" * (1 << n), "Ã©" * (1 << n)) for n in range(6)),
    ]  # é, twice as long each time
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    for text in ("e\u0301" * 64 * 4, "é" * 64 * 4, "\u1fbe\u0308\u0341" * 200):
        assert 0 < tokenizer.min_num_tokens(text) <= len(tokenizer.encode(text))
    assert len(tokenizer.encode("e\u0301" * 64)) == 1  # of 128 bytes, made of 192


@pytest.mark.no_cover
def test_nfc_makes_no_more_than_four_bytes_one() -> None:
    """Over every character: of the longest spelling of each of its parts."""
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    longest: dict[str, int] = {}
    for character in every:
        if len(part := normalize("NFD", character)) == 1:
            longest[part] = max(longest.get(part, 0), len(character.encode()))
    ratios = [
        sum(longest[part] for part in normalize("NFD", character)) / len(character.encode())
        for character in every
        if is_normalized("NFC", character)
    ]
    assert 3 < max(ratios) <= _MOST_COMPOSED


# What is refused, and how


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0), decoders.Replace("a", "b")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2**60, 0)]),
        decoders.Sequence([decoders.ByteLevel(), decoders.Metaspace()]),
    ],
)
def test_a_decoder_that_needs_tokens_to_come_is_refused(decoder: Any) -> None:
    with pytest.raises(ValueError, match="decoder is not supported"):
        read_spelling(json.loads(decoder.__getstate__()))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({}, "no such file, nor a tokenizer.model"),
        ({"tokenizer.json": LFS}, "Git LFS pointer"),
        ({"tokenizer.json": "<html>"}, "expected value"),
        ({"tokenizer.json": "[" * 10_000}, "expected"),
        ({"tokenizer.model": LFS}, "Git LFS pointer"),
        ({"tokenizer.model": "<html>"}, "not a SentencePiece model"),
        ({"tokenizer.model": ""}, "not a SentencePiece model"),
        ({"tokenizer.model": "\x0a\x7fabc"}, "not a whole SentencePiece model"),
        ({"vocab.json": {"a": 0}}, "merges.txt"),
        ({"vocab.json": {"a": 0}, "merges.txt": ""}, "tokenizer_class is nowhere named"),
        ({"vocab.json": {"a": 0}, "merges.txt": "a b c\n"}, "merges.txt has 'a b c' in line 1"),
        ({"vocab.json": {"a": "b"}, "merges.txt": "", "config.json": {"model_type": "gpt2"}}, "vocab.json: "),
        ({"mine.tiktoken": "YQ== 0\n"}, "how a text is cut is not in the file"),
        ({"qwen.tiktoken": "YQ== 0\n!!! 1\n"}, "line 2 is not a token in base64"),
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json: "),
        ({"tokenizer_config.json": "[]"}, "must hold an object, not a list"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}}, "tokenizer_config.json: "),
        ({"tokenizer_config.json": {"bos_token": 5}}, "bos_token must be a string or an object"),
        ({"special_tokens_map.json": {"bos_token": 5}}, "special_tokens_map.json: .*bos_token must be"),
        ({"added_tokens.json": {"a": "b"}}, "added_tokens.json: "),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_cause_in_one_line(
    files: dict[str, object], cause: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises(ValueError, match=cause) as caught:
        Tokenizer(tmp_path)
    assert str(caught.value).startswith(f"cannot load {tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_bos_that_is_asked_for_must_exist(tmp_path: Path) -> None:
    saved_byte_level(tokenizer_class="LlamaTokenizer", bos_token=None)(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="has add_bos_token, and no bos_token"):
        Tokenizer(tmp_path)


def test_a_huge_id_is_refused_before_a_table_is_made_of_it(tmp_path: Path) -> None:
    saved_byte_level()(tmp_path, tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["vocab"]["zzz"] = 2**32 - 1
    write(tmp_path, "tokenizer.json", document)
    with pytest.raises(ValueError, match="token id 4294967295, at most 16777216"):
        Tokenizer(tmp_path)


def test_a_vocabulary_that_lacks_its_unk_token_is_refused_at_once(tmp_path: Path) -> None:
    """The library would find it at the first unknown character, in somebody's request."""
    BUILDERS["wordpiece"](tmp_path, tmp_path)
    Tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["unk_token"] = "[MISSING]"
    write(tmp_path, "tokenizer.json", document)
    with pytest.raises(ValueError, match=r"tokenizer\.json: WordPiece error: Missing"):
        Tokenizer(tmp_path)


def test_dropout_of_merges_is_off(tmp_path: Path) -> None:
    saved_byte_level()(tmp_path, tmp_path)
    expected = Tokenizer(tmp_path).encode(SENTENCES[0])
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["dropout"] = 0.5
    write(tmp_path, "tokenizer.json", document)
    tokenizer = Tokenizer(tmp_path)
    assert all(tokenizer.encode(SENTENCES[0]) == expected for _ in range(20))


WORST = ["gpt2", "qwen2", "phi-3", "mistral, not legacy", "llama of a small unigram", "gemma"]


@pytest.mark.no_cover
@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("character", ["a", " ", "\u0301", "👍"])
def test_one_character_over_and_over_does_not_hang(
    name: str, character: str, pairs: Callable[[str], Pair]
) -> None:
    """One word of 200,000 characters: a second at most, and hours if merging them were quadratic."""
    tokenizer = pairs(name).ours
    ids = tokenizer.encode(character * 200_000, add_special_tokens=False)
    assert tokenizer.decode(ids) in (character * 200_000, " " * 199_999)  # Llama's leading space is dropped
