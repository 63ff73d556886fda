"""The text of one stream, token by token: whole characters only, ended by the first stop string.

Decides when a token's text can no longer change, so that nothing shown is ever taken back. Knows nothing of
requests, sockets or finish reasons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token whose text is final. `index` counts the tokens pushed, from 0."""

    index: int
    text: str
    is_special: bool


class StopMatcher:
    """Finds the first of several strings to be complete, one character at a time (Aho & Corasick 1975).

    The state is a node of the trie of all the strings: the longest end of the text that begins one of them.
    A character costs constant time, amortised, however many and long the strings are.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._depths = [0]
        self._matches = [0]  # the length of the longest string that ends here, or 0
        for string in strings:
            self._insert(string)
        self._fallbacks = [0] * len(self._children)  # the node of the longest proper end that is in the trie
        self._link()
        self._node = 0

    @property
    def num_open(self) -> int:
        """How many of the last characters may yet become one of the strings."""
        return self._depths[self._node]

    def advance(self, character: str) -> int:
        """Take one character; the length of the longest string that it completes, or 0."""
        self._node = self._step(self._node, character)
        return self._matches[self._node]

    def _insert(self, string: str) -> None:
        node = 0
        for depth, character in enumerate(string, start=1):
            if character not in self._children[node]:
                self._children[node][character] = len(self._children)
                self._children.append({})
                self._depths.append(depth)
                self._matches.append(0)
            node = self._children[node][character]
        self._matches[node] = len(string)

    def _link(self) -> None:
        """Set the fallbacks, breadth first: those of shorter ends are known before they are needed."""
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            fallback = self._fallbacks[node]
            self._matches[node] = self._matches[node] or self._matches[fallback]
            for character, child in self._children[node].items():
                self._fallbacks[child] = self._step(fallback, character)
                queue.append(child)

    def _step(self, node: int, character: str) -> int:
        while node and character not in self._children[node]:
            node = self._fallbacks[node]
        return self._children[node].get(character, 0)


@dataclass(slots=True)
class _HeldToken:
    """A token not released yet; its text ends at character `end` of the generated text."""

    index: int
    text: str
    is_special: bool
    end: int


class StreamText:
    """The incremental detokenizer of one stream.

    The texts of the tokens that are not special, joined, are the decoding of all the pushed ids in the
    context of the prompt: what `Tokenizer.decode` of prompt and ids adds to that of the prompt. A character
    spread over several tokens comes with the last of them. A special token's text is its name, and no part
    of the generated text.

    The occurrence of a stop string that is complete first ends the text, after it if `include_stop_str`,
    else before it; of several complete at once, the longest. A token is released as soon as its text is
    final: it waits only while it may get the U+FFFD of a character that stays unfinished, or, when stop
    strings are cut away, while its text overlaps what may yet become one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        include_stop_str: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.text_decoder(prompt_ids)
        self._matcher = StopMatcher(stop)
        self._include_stop_str = include_stop_str
        self._held: deque[_HeldToken] = deque()
        self._last: _HeldToken | None = None  # the last token with text: an unfinished character is its own
        self._released: list[str] = []
        self._num_pushed = 0
        self._num_chars = 0  # of the generated text, held or released
        self._is_stopped = False
        self._is_finished = False

    @property
    def text(self) -> str:
        """The generated text released so far; once stopped or finished, all of it."""
        return "".join(self._released)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found. What is pushed after it is ignored."""
        return self._is_stopped

    def push(self, token_id: int) -> list[TokenText]:
        """Take the next token; the tokens that are final now, in order. Nothing once stopped or finished."""
        if self._is_finished:
            return []
        is_special = self._tokenizer.is_special(token_id)
        token = _HeldToken(self._num_pushed, "", is_special, end=0)
        self._num_pushed += 1
        self._held.append(token)
        if is_special:
            token.text = self._tokenizer.token_text(token_id)
        else:
            if self._tokenizer.piece(token_id):
                self._last = token
            self._append(self._decoder.feed(token_id), token)
        return self._release()

    def finish(self) -> list[TokenText]:
        """End the text; the tokens that were still held. Nothing if stopped or finished before."""
        if not self._is_finished:
            rest = self._decoder.finish()
            if self._last is not None:
                self._append(rest, self._last)
            self._is_finished = True
        return self._release()

    def _append(self, text: str, token: _HeldToken) -> None:
        """Let `text` follow the generated text, as the token's, up to where a stop string is complete."""
        num_matched = 0
        for num_read, character in enumerate(text, start=1):
            if num_matched := self._matcher.advance(character):
                text = text[:num_read]
                break
        token.text += text
        self._num_chars += len(text)
        token.end = self._num_chars
        if num_matched:
            self._is_stopped = self._is_finished = True
            if not self._include_stop_str:
                self._cut(num_matched)

    def _cut(self, num_chars: int) -> None:
        """Take that many characters off the end; they lie in held tokens, all of them."""
        num_kept = self._num_chars - num_chars
        for token in self._held:
            if not token.is_special:
                excess = min(max(0, token.end - num_kept), len(token.text))
                token.text = token.text[: len(token.text) - excess]

    def _release(self) -> list[TokenText]:
        num_open = 0 if self._include_stop_str else self._matcher.num_open
        num_final = self._num_chars - num_open
        unfinished = self._last if self._decoder.is_unfinished else None
        released = []
        while self._held:
            token = self._held[0]
            if not self._is_finished and (token is unfinished or token.end > num_final):
                break
            self._held.popleft()
            released.append(TokenText(token.index, token.text, token.is_special))
            if not token.is_special:
                self._released.append(token.text)
        return released
