"""Whole texts to ids and back, against the library itself; and which files are refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.text.tokenizer import Tokenizer, TokenSpan
from tests.server.text.conftest import ROOT, Vocabulary

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@fuzz
@given(any_text)
def test_text_survives_the_way_to_ids_and_back(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.tokenizer.encode(text)
    assert ids == vocabulary.library.encode(text).ids
    assert vocabulary.tokenizer.decode(ids) == text


@fuzz
@given(st.data(), st.booleans())
def test_whole_decoding_equals_the_library(
    vocabulary: Vocabulary, data: st.DataObject, skip_special_tokens: bool
) -> None:
    if vocabulary.falls_back_to_bytes:
        first = max(vocabulary.byte_ids) + 1
        any_id = st.integers(first, vocabulary.tokenizer.vocab_size)  # its odd case has a test of its own
    else:
        any_id = st.integers(0, vocabulary.tokenizer.vocab_size) | st.sampled_from(vocabulary.byte_ids)
    ids = data.draw(st.lists(any_id))
    expected = vocabulary.library.decode(ids, skip_special_tokens=skip_special_tokens)
    assert vocabulary.tokenizer.decode(ids, skip_special_tokens) == expected


@fuzz
@given(any_text)
def test_offsets_are_slices_of_the_text(vocabulary: Vocabulary, text: str) -> None:
    spans = vocabulary.tokenizer.encode_with_offsets(text)
    assert [span.id for span in spans] == vocabulary.tokenizer.encode(text)
    assert all(span.text == text[span.start : span.stop] for span in spans)
    covered = 0
    for span in spans:
        assert span.start <= covered <= max(covered, span.stop)  # no gap
        covered = max(covered, span.stop)
    assert covered == len(text)


def test_tokens_that_share_a_character_all_name_it(vocabularies: dict[str, Vocabulary]) -> None:
    spans = vocabularies["gpt2"].tokenizer.encode_with_offsets("a 👍")
    assert spans[0] == TokenSpan(spans[0].id, "a", 0, 1)
    assert len(spans) > 2
    assert all(span.text.endswith("👍") and span.stop == 3 for span in spans[1:])


def test_special_tokens_are_those_the_file_calls_so(vocabularies: dict[str, Vocabulary]) -> None:
    phi = vocabularies["phi-3"].tokenizer
    assert phi.vocab_size == 32_011
    assert phi.is_special(32_007)
    assert phi.token_text(32_007) == "<|end|>"
    assert not phi.is_special(2)  # "</s>" is an added token, but not a special one
    assert phi.decode([32_007, 2]) == "</s>"
    assert phi.decode([32_007, 2], skip_special_tokens=False) == "<|end|></s>"


def test_a_token_alone_reads_as_within_a_text(vocabularies: dict[str, Vocabulary]) -> None:
    for vocabulary in vocabularies.values():
        tokenizer = vocabulary.tokenizer
        ids = tokenizer.encode("So, the", add_special_tokens=False)
        assert "".join(map(tokenizer.token_text, ids)).strip() == "So, the"
        assert tokenizer.token_text(ids[-1]) == " the"
        assert tokenizer.token_text(vocabulary.byte_ids[0xF0]) == "\ufffd"


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
def test_an_unknown_id_adds_nothing(vocabulary: Vocabulary, token_id: int) -> None:
    assert vocabulary.tokenizer.decode([token_id]) == vocabulary.tokenizer.token_text(token_id) == ""
    assert not vocabulary.tokenizer.is_special(token_id)


@pytest.mark.parametrize("method", [Tokenizer.encode, Tokenizer.encode_with_offsets])
def test_other_threads_run_while_a_long_text_is_encoded(
    vocabularies: dict[str, Vocabulary], method: Callable[[Tokenizer, str], object]
) -> None:
    """The loop of the streams is such a thread; when the GIL was held, it stood still most of the time."""
    ticks = []
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)
        ticks.append(time.monotonic())

    ticker = threading.Thread(target=tick)
    ticker.start()
    method(vocabularies["storyteller"].tokenizer, "Once upon a time, " * 55_000)
    is_over.set()
    ticker.join()
    assert len(ticks) >= 15
    assert max(after - before for before, after in pairwise(ticks)) < (ticks[-1] - ticks[0]) / 2


# The fewest tokens of a text


@fuzz
@given(st.data())
def test_no_text_has_fewer_tokens_than_its_bound(vocabulary: Vocabulary, data: st.DataObject) -> None:
    tokenizer = vocabulary.tokenizer
    any_token = st.integers(0, tokenizer.vocab_size - 1).map(tokenizer.token_text)
    text = "".join(data.draw(st.lists(any_token | any_text))) * data.draw(st.integers(1, 20))
    assert tokenizer.min_num_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_the_bound_is_met_by_the_longest_token(vocabularies: dict[str, Vocabulary]) -> None:
    for name in ("storyteller", "gpt2", "qwen2"):
        tokenizer = vocabularies[name].tokenizer
        longest = max(map(tokenizer.piece, range(tokenizer.vocab_size)), key=len)
        assert isinstance(longest, bytes)
        assert tokenizer.min_num_tokens("a" * len(longest) * 100) == 100
    assert vocabularies["phi-3"].tokenizer.min_num_tokens("a" * 10**6) == 0  # it has tokens that eat spaces


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
BYTE_LEVEL_WORDS = {"type": "Sequence", "pretokenizers": [CUT_AT_SPACES, BYTE_LEVEL]}


def without_byte_0(source: dict[str, Any]) -> None:
    del source["model"]["vocab"]["\u0100"]


def with_end_token(**flags: bool) -> Callable[[dict[str, Any]], None]:
    return lambda source: source["added_tokens"][0].update(flags)


def with_step(place: str, step: object) -> Callable[[dict[str, Any]], None]:
    return lambda source: source.update({place: step})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without_byte_0, "\0" * 200),
        (with_end_token(lstrip=True), " " * 200 + "<|end|>"),
        (with_end_token(rstrip=True), "<|end|>" + " " * 200),
        (with_step("normalizer", {"type": "Strip", "strip_left": True, "strip_right": True}), " " * 200),
        (with_step("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": ""}), " " * 200),
        (with_step("pre_tokenizer", BYTE_LEVEL_WORDS), " " * 200),
        (with_step("pre_tokenizer", {"type": "WhitespaceSplit"}), "\0" * 200),
    ],
)  # fmt: skip
def test_where_bytes_can_be_lost_there_is_no_bound(
    tmp_path: Path, source: dict[str, Any], change: Callable[[dict[str, Any]], None], text: str
) -> None:
    bound = load(tmp_path, source).min_num_tokens(text)
    change(source)
    tokenizer = load(tmp_path, source)
    assert len(tokenizer.encode(text)) < bound  # it would be wrong here
    assert tokenizer.min_num_tokens(text) == 0


def test_a_sentencepiece_vocabulary_has_a_bound_unless_spaces_hide_in_an_added_token(
    tmp_path: Path, shared_data: Path
) -> None:
    source = json.loads((shared_data / "tokenizers/phi-3-mini/tokenizer.json").read_text(encoding="utf-8"))
    for token in source["added_tokens"]:
        token["rstrip"] = False
    tokenizer = load(tmp_path, source)
    # Each text has 480 bytes, and the longest token, sixteen times U+2581, 48.
    for text in ("\u2581" * 160, " " * 480, "👍" * 120, "<|placeholder1|>" * 30):
        assert tokenizer.min_num_tokens(text) == 10 <= len(tokenizer.encode(text))

    source["added_tokens"][-1] |= {"content": " " * 30, "normalized": True}
    tokenizer = load(tmp_path, source)
    assert len(tokenizer.encode("\u2581" * 30)) == 1  # 90 bytes
    assert tokenizer.min_num_tokens("\u2581" * 30) == 0


# Loading


@pytest.fixture
def source() -> dict[str, Any]:
    text = (ROOT / "weights/tokenizer.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def load(folder: Path, source: dict[str, Any]) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(source))
    return Tokenizer(folder)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path, source: dict[str, object]) -> None:
    source["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    source["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    ids = Tokenizer(tmp_path).encode("Once upon a time there was a fox")
    assert 2 < len(ids) < 64
    assert 0 not in ids


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"\xff", b'{"decoder": null}', b"[]"])
def test_a_missing_or_broken_file_is_named_with_its_cause(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load .*tokenizer\.json: \S+"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]},
    ],
)
def test_a_decoder_that_is_not_understood_is_refused(
    tmp_path: Path, source: dict[str, object], decoder: object
) -> None:
    source["decoder"] = decoder
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(ValueError, match="decoder is not supported"):
        Tokenizer(tmp_path)
