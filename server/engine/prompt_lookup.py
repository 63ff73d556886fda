"""PromptLookup: guesses a sequence's next tokens from what it holds already. Knows no model and no budget.

What a text repeats (a quoted passage, code that is edited, a list in one pattern) it mostly repeats word for
word. So where the last few tokens stood earlier, the tokens that followed there are guessed again. The model
decides; a guess costs a row of a step, and never changes an answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

MIN_MATCH: Final = 2  # tokens that must have stood there: the index is by these
MAX_MATCH: Final = 8  # tokens that are compared
MAX_PLACES: Final = 16  # that are looked at, the latest: a pair of tokens may stand at thousands
EARNED: Final = 1 / 32  # guesses that a token earns: so rows lost on what never repeats stay at 3 %


class PromptLookup:
    """An index of the pairs of tokens of one sequence, and how many guesses it may still lose.

    Each guess that proves right earns another, each that is wrong costs one: where all are right their
    number doubles from step to step, and no more are lost than were won, but for what each token earns.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}  # of each pair: where it ended last
        self._earlier = array("i", (0, 0))  # [p]: where the pair that ends at p ended before; 0: nowhere
        self.credit = 1.0

    def draft(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """Guess at most `limit` tokens after `token_ids`, to which tokens are only ever appended.

        The place is the one, of the latest `MAX_PLACES` where the last `MIN_MATCH` tokens stood, that has
        most in common with the end, up to `MAX_MATCH` tokens; of several the latest. What followed there is
        repeated if it ends before the limit: a guess may overlap what it is copied from.
        """
        limit = min(limit, int(self.credit))
        if limit <= 0:
            return []
        place = self._place(token_ids)
        followed = token_ids[place : place + limit] if place else ()
        return [followed[i % len(followed)] for i in range(limit)] if followed else []

    def count(self, num_drafts: int, num_accepted: int, limit: int) -> None:
        """A token came; of so many guesses before it so many were right. `limit` is the most in a step."""
        earned = EARNED + num_accepted - (num_drafts - num_accepted)
        self.credit = min(float(limit), max(0.0, self.credit + earned))

    def _place(self, token_ids: Sequence[int]) -> int:
        """Where what is like the end of `token_ids` ended; 0 if nothing is."""
        num_tokens = len(token_ids)
        for end in range(len(self._earlier), num_tokens):  # the last pair is no earlier place of itself
            pair = token_ids[end - 2], token_ids[end - 1]
            self._earlier.append(self._latest.get(pair, 0))
            self._latest[pair] = end
        if num_tokens < MIN_MATCH:
            return 0
        best, longest = 0, 0
        place = self._latest.get((token_ids[-2], token_ids[-1]), 0)
        for _ in range(MAX_PLACES):
            if not place or longest == MAX_MATCH:
                break
            length = MIN_MATCH
            while length < min(place, MAX_MATCH) and token_ids[place - length - 1] == token_ids[-length - 1]:
                length += 1
            if length > longest:
                best, longest = place, length
            place = self._earlier[place]
        return best
