"""The text of a stream against plain references: decode everything at once, then `str.find`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.text.detokenizer import StopMatcher, StreamText, TokenText
from tests.server.text.conftest import Vocabulary

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXTS = [
    "Once upon a time",
    " a\n\nb",
    "aaab",
    " don't",
    "Grüße, 东京 👩🏽‍🚀!",
    "\ufffd",
    "é",
    "ﷺ",
    "  ",
    "\t",
    "ab" * 9,
]


@st.composite
def ids_of(draw: st.DrawFn, vocabulary: Vocabulary) -> list[int]:
    """Ids as a model may choose them: of text, any token, bytes that fit together or not, special ones."""
    tokenizer = vocabulary.tokenizer
    part = (
        st.sampled_from(TEXTS).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
        | st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=6)
        | st.binary(max_size=4).map(lambda data: [vocabulary.byte_ids[byte] for byte in data])
        | st.characters(min_codepoint=128, exclude_categories=["Cs"]).map(
            lambda character: [vocabulary.byte_ids[byte] for byte in character.encode()]
        )
        | st.sampled_from(vocabulary.special_ids).map(lambda token_id: [token_id])
    )
    return [token_id for ids in draw(st.lists(part, max_size=8)) for token_id in ids]


def run(stream: StreamText, ids: Sequence[int]) -> list[TokenText]:
    return [token for token_id in ids for token in stream.push(token_id)] + stream.finish()


def joined(tokens: Sequence[TokenText]) -> str:
    return "".join(token.text for token in tokens if not token.is_special)


def until_stop(text: str, stop: Sequence[str], include_stop_str: bool) -> str:
    """The definition in its plain form: of all occurrences the first to be complete, then the longest."""
    found = [(text.find(string) + len(string), -len(string)) for string in stop if string in text]
    if not found:
        return text
    end, length = min(found)
    return text[: end if include_stop_str else end + length]


def length_of_open_end(text: str, stop: Sequence[str]) -> int:
    return max(
        (size for string in stop for size in range(1, len(string)) if text.endswith(string[:size])), default=0
    )


def has_mixed_row(vocabulary: Vocabulary, ids: Sequence[int]) -> bool:
    """Whether byte-fallback tokens in a row hold whole characters beside invalid bytes."""
    pieces = [vocabulary.tokenizer.piece(i) for i in ids if not vocabulary.tokenizer.is_special(i)]
    kinds = "".join("b" if isinstance(piece, bytes) else "t" for piece in pieces if piece)
    data = [piece for piece in pieces if piece]
    for row in re.finditer("b+", kinds):
        row_bytes = b"".join(piece for piece in data[row.start() : row.end()] if isinstance(piece, bytes))
        if (
            row_bytes.decode(errors="ignore")
            and b"\xef\xbf\xbd" in row_bytes.decode(errors="replace").encode()
        ):
            return True
    return False


# The whole text, however its ids come about


@fuzz
@given(st.data())
def test_the_texts_joined_are_the_whole_decoding(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(ids_of(vocabulary))
    stream = StreamText(vocabulary.tokenizer)
    tokens = run(stream, ids)
    assert [token.index for token in tokens] == list(range(len(ids)))
    assert [token.is_special for token in tokens] == [i in vocabulary.special_ids for i in ids]
    assert stream.text == joined(tokens) == vocabulary.tokenizer.decode(ids)
    if not vocabulary.falls_back_to_bytes or not has_mixed_row(vocabulary, ids):
        assert stream.text == vocabulary.whole(ids)


@fuzz
@given(st.data())
def test_prompt_and_generated_text_join_without_a_seam(vocabulary: Vocabulary, data: st.DataObject) -> None:
    prompt, ids = data.draw(ids_of(vocabulary)), data.draw(ids_of(vocabulary))
    shown, whole = vocabulary.tokenizer.decode(prompt), vocabulary.tokenizer.decode(prompt + ids)
    text = joined(run(StreamText(vocabulary.tokenizer, prompt), ids))
    if whole.startswith(shown):
        assert text == whole.removeprefix(shown)
    else:  # an unfinished character of the prompt was finished
        assert whole in {shown[:-num_finished] + text for num_finished in range(1, 4)}


def test_hostile_text_streams_as_it_was_written(vocabulary: Vocabulary, shared_data: Path) -> None:
    strings = json.loads((shared_data / "robustness/blns.json").read_text(encoding="utf-8"))
    assert len(strings) > 500
    for string in strings:
        ids = vocabulary.tokenizer.encode(string, add_special_tokens=False)
        assert joined(run(StreamText(vocabulary.tokenizer), ids)) == vocabulary.whole(ids) == string


def test_no_replacement_character_is_shown_on_the_way(vocabulary: Vocabulary) -> None:
    stream = StreamText(vocabulary.tokenizer)
    for byte in "👩🏽‍🚀東ﷺ".encode():
        assert "\ufffd" not in joined(stream.push(vocabulary.byte_ids[byte]))
    assert stream.finish() == []


# When a token is released


@fuzz
@given(st.data())
def test_whole_characters_are_never_held_back(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = vocabulary.tokenizer.encode("".join(data.draw(st.lists(st.sampled_from(TEXTS)))))
    stream = StreamText(vocabulary.tokenizer)
    num_released = 0
    for num_pushed, token_id in enumerate(ids, start=1):
        num_released += len(stream.push(token_id))
        is_whole = not vocabulary.tokenizer.decode(ids[:num_pushed]).endswith("\ufffd")
        assert num_released == num_pushed or not is_whole
    assert num_released == len(ids)


def test_a_character_comes_with_the_last_of_its_tokens(vocabulary: Vocabulary) -> None:
    ids = [vocabulary.byte_ids[byte] for byte in "€".encode()]
    special = vocabulary.special_ids[0]
    stream = StreamText(vocabulary.tokenizer)
    assert stream.push(ids[0]) == []
    assert [token.text for token in stream.push(ids[1])] == [""]
    assert stream.push(special) == []
    name = vocabulary.tokenizer.token_text(special)
    assert [token.text for token in stream.push(ids[2])] == ["", name, "€"]
    assert stream.text == "€"


def test_what_stays_unfinished_belongs_to_the_last_token_with_text(vocabulary: Vocabulary) -> None:
    special, unknown = vocabulary.special_ids[0], vocabulary.tokenizer.vocab_size
    ids = [vocabulary.byte_ids[0xF0], vocabulary.byte_ids[0x9F], unknown, special]
    tokens = run(StreamText(vocabulary.tokenizer), ids)
    whole = vocabulary.whole(ids)
    assert set(whole) == {"\ufffd"}
    assert [token.text for token in tokens] == ["", whole, "", vocabulary.tokenizer.token_text(special)]


def test_invalid_bytes_are_released_at_once_in_linear_time(vocabulary: Vocabulary) -> None:
    stream = StreamText(vocabulary.tokenizer, stop=["\ufffdx", "\ufffd" * 256 + "y"], include_stop_str=True)
    began = time.process_time()
    for _ in range(20_000):
        assert [token.text for token in stream.push(vocabulary.byte_ids[0x80])] == ["\ufffd"]
    assert time.process_time() - began < 2.0  # measured 0.06


def test_byte_fallback_keeps_the_valid_characters_beside_invalid_bytes(
    vocabularies: dict[str, Vocabulary],
) -> None:
    phi = vocabularies["phi-3"]
    ids = [phi.byte_ids[byte] for byte in b"\xe2\x82\xac\xff\n"]
    assert joined(run(StreamText(phi.tokenizer), ids)) == "€\ufffd\n"
    assert phi.whole(ids) == "\ufffd" * 5  # had "€" waited for this, so would every newline


# Context


def test_a_leading_space_is_dropped_only_at_the_very_start(vocabularies: dict[str, Vocabulary]) -> None:
    phi = vocabularies["phi-3"].tokenizer
    ids = phi.encode("there", add_special_tokens=False)
    bos = phi.encode("<s>", add_special_tokens=False)[:1]
    assert joined(run(StreamText(phi, bos), ids)) == "there"
    assert joined(run(StreamText(phi, phi.encode("Hello")), ids)) == " there"


def test_a_character_that_the_prompt_begins_is_finished(vocabulary: Vocabulary) -> None:
    ids = [vocabulary.byte_ids[byte] for byte in "a👍b".encode()]
    assert joined(run(StreamText(vocabulary.tokenizer, ids[:3]), ids[3:])) == "👍b"


def test_a_character_that_the_prompt_leaves_unfinished_is_not_shown_twice(vocabulary: Vocabulary) -> None:
    prompt = [vocabulary.byte_ids[byte] for byte in b"a\xf0\x9f"]
    ids = [vocabulary.byte_ids[byte] for byte in b"\xffb"]
    assert joined(run(StreamText(vocabulary.tokenizer, prompt), ids)) == "\ufffdb"


# Stop strings


@fuzz
@given(st.data(), st.booleans())
def test_the_first_stop_string_ends_the_text(
    vocabulary: Vocabulary, data: st.DataObject, include_stop_str: bool
) -> None:
    tokenizer = vocabulary.tokenizer
    ids = data.draw(ids_of(vocabulary))
    whole = tokenizer.decode(ids)
    slices = st.tuples(st.integers(0, len(whole)), st.integers(1, 30)).map(
        lambda s: whole[s[0] : s[0] + s[1]]
    )
    near_misses = st.tuples(slices, st.sampled_from(["", "a", " ", "\ufffd"])).map("".join)
    stop = data.draw(st.lists(near_misses.filter(bool), max_size=4))
    expected = until_stop(whole, stop, include_stop_str)

    texts = [token.text if not token.is_special else "" for token in run(StreamText(tokenizer), ids)]
    ends = list(accumulate(map(len, texts)))
    stream = StreamText(tokenizer, (), stop, include_stop_str)
    tokens: list[TokenText] = []
    for num_pushed, token_id in enumerate(ids, start=1):
        released = stream.push(token_id)
        tokens += released
        assert expected.startswith(stream.text)
        if stream.is_stopped:
            assert any(string in whole[: ends[num_pushed - 1]] for string in stop)
            assert len(tokens) == num_pushed
            assert stream.push(token_id) == []
            break
        so_far = tokenizer.decode(ids[:num_pushed])
        if not so_far.endswith("\ufffd"):  # then no character is unfinished
            assert not any(string in so_far for string in stop)
            num_open = 0 if include_stop_str else length_of_open_end(so_far, stop)
            is_held = [
                end > len(so_far) - num_open and not tokenizer.is_special(i)
                for end, i in zip(ends[:num_pushed], ids, strict=False)
            ]
            assert len(tokens) == (is_held.index(True) if True in is_held else num_pushed)
    tokens += stream.finish()
    assert stream.text == joined(tokens) == expected
    assert stream.is_stopped == any(string in whole for string in stop)
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert stream.finish() == []


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=5), st.text("abc", max_size=40))
def test_the_matcher_agrees_with_plain_search(stop: list[str], text: str) -> None:
    matcher = StopMatcher(stop)
    for end in range(1, len(text) + 1):
        matched = matcher.advance(text[end - 1])
        assert matched == max((len(string) for string in stop if text[:end].endswith(string)), default=0)
        if matched:
            break
        assert matcher.num_open == length_of_open_end(text[:end], stop)


@pytest.mark.parametrize(
    ("text", "stop", "excluded", "included"),
    [
        ("aaab!", ["aab"], "a", "aaab"),
        ("ababac!", ["abac"], "ab", "ababac"),
        ("xabcd", ["abcd", "bc"], "xa", "xabc"),
        ("xabc", ["bc", "abc", "c"], "x", "xabc"),
        ("one two", ["two three", "twin"], "one two", "one two"),
        ("stop", ["stop"], "", "stop"),
        ("go", [], "go", "go"),
    ],
)
def test_stop_strings_by_example(
    vocabulary: Vocabulary, text: str, stop: list[str], excluded: str, included: str
) -> None:
    ids = [vocabulary.byte_ids[byte] for byte in text.encode()]
    assert joined(run(StreamText(vocabulary.tokenizer, (), stop), ids)) == excluded
    assert joined(run(StreamText(vocabulary.tokenizer, (), stop, include_stop_str=True), ids)) == included


def test_only_what_may_become_the_stop_string_waits(vocabulary: Vocabulary) -> None:
    stream = StreamText(vocabulary.tokenizer, stop=["\n\nEnd"])
    texts = [
        "".join(token.text for token in stream.push(vocabulary.byte_ids[byte])) for byte in b"a\nb\n\n\nEnx"
    ]
    assert texts == ["a", "", "\nb", "", "", "\n", "", "", "\n\nEnx"]


def test_a_stop_string_is_found_before_the_next_character_is_whole(
    vocabularies: dict[str, Vocabulary],
) -> None:
    gpt2 = vocabularies["gpt2"]
    pieces = map(gpt2.tokenizer.piece, range(gpt2.tokenizer.vocab_size))
    space_and_lead_byte = next(
        i
        for i, piece in enumerate(pieces)
        if isinstance(piece, bytes) and re.fullmatch(rb" [\xc2-\xf4]", piece)
    )
    stream = StreamText(gpt2.tokenizer, stop=[" "], include_stop_str=True)
    assert [token.text for token in stream.push(space_and_lead_byte)] == [" "]
    assert stream.is_stopped
