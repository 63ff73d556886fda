"""Rank order: the larger first, ties by the lowest id. Every cut is a part of it, every draw a prefix.

Knows nothing of parameters or seeds. Rows are on the CPU, where NumPy finds and sorts many times as fast as
PyTorch, and sums in one order, not in a part for each thread. PyTorch is faster at exponentials alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

# A row is put in order as far as its head, the ids more probable than this; further where that is too short.
HEAD_PROBS = (1e-3, 1e-5)

# A shortlist's bound comes of the best of so many groups of ids for each id wanted, and of at least so many.
GROUPS_EACH = 4
LEAST_GROUPS = 256
NEAR = 1e-6  # of the distance from the best to the bound: what lies so little below it is listed, too

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class BeyondHeadError(Exception):
    """What was asked for goes on behind the ids that a ranking lists."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ids of a row in rank order, or the first of them: each array is [num_listed]."""

    ids: Ids
    logits: Floats  # falling
    weights: Floats  # e^(logit - largest)
    largest: float
    total: float  # of the weights of all ids, those that are not listed too
    is_whole: bool  # whether every id that can be chosen is listed

    @property
    def probs(self) -> Floats:
        """The softmax."""
        return self.weights / self.total

    def logprob(self, logit: float) -> float:
        """The logarithm of the probability of an id with this logit: also of one too small to be a number."""
        return logit - self.largest - math.log(self.total)

    def best(self, count: int) -> list[tuple[int, float]]:
        """The first so many ids with their logits; fewer if fewer are listed."""
        return list(zip(self.ids[:count].tolist(), self.logits[:count].tolist(), strict=True))

    def first(self, count: int) -> Ranking:
        """The first `count` as all that is left. Raises `BeyondHeadError` if they are not listed."""
        if count > len(self.ids) and not self.is_whole:
            raise BeyondHeadError
        return self.at(slice(count))

    def at(self, places: Ids | slice) -> Ranking:
        """The ids at these places, which are ascending, as all that is left."""
        weights = self.weights[places]
        total = weights.sum().item()
        return Ranking(self.ids[places], self.logits[places], weights, self.largest, total, is_whole=True)

    def named(self, ids: Ids) -> Ranking:
        """The same with an id for each place: of a row that is a part of another."""
        return Ranking(
            ids[self.ids], self.logits, self.weights, self.largest, self.total, is_whole=self.is_whole
        )

    def num_to_mass(self, mass: float, *, is_beyond: bool = False) -> int:
        """The length of the shortest prefix of probability `mass` or more; with `is_beyond`, of more.

        If rounding leaves even the sum of all short of `mass`, the prefix ends with the last id that adds to
        it. 0 <= mass <= 1. Raises `BeyondHeadError` if it is not listed.
        """
        # A cumulative sum is sequential, so that of a head is the same with and without the rest.
        sums = self.probs.cumsum()
        length = num_to_mass(sums, mass, is_beyond=is_beyond)
        if length <= len(sums):
            return length
        if not self.is_whole:
            raise BeyondHeadError
        return num_to_mass(sums, sums[-1])


def num_to_mass(sums: Floats, mass: float, *, is_beyond: bool = False) -> int:
    """How many of the first numbers reach `mass`, or exceed it, by their cumulative sums; else one more."""
    return int(sums.searchsorted(mass, "right" if is_beyond else "left")) + 1


class Softmax:
    """The softmax of a row, of which so much is put in order as is wanted."""

    def __init__(self, row: NDArray[np.floating], largest: float) -> None:
        """row: [vocab_size], float32 or float64, no NaN, `largest` of it finite; left as it is."""
        self._row, self._largest = row, largest
        self._weights: Floats = np.subtract(row, largest, dtype=np.float64)
        torch.from_numpy(self._weights).exp_()
        self._total = self._weights.sum().item()

    def logprob(self, logit: float) -> float:
        """The logarithm of the probability of an id with this logit: also of one too small to be a number."""
        return logit - self._largest - math.log(self._total)

    def best(self, count: int) -> list[tuple[int, float]]:
        """The first so many ids with their logits; fewer if fewer are above -inf."""
        return self._listed(shortlist(self._row, count)).best(count)

    def all(self) -> Ranking:
        """Every id above -inf."""
        return self._listed((self._row > -np.inf).nonzero()[0], is_whole=True)

    def heads(self, count: int) -> Iterator[Ranking]:
        """Longer and longer rankings, the last one whole; each of `count` ids, if so many can be chosen."""
        for floor in HEAD_PROBS if len(self._row) > 1 / HEAD_PROBS[0] else ():
            ids = (self._weights > floor * self._total).nonzero()[0]
            yield self._listed(ids if len(ids) >= count else shortlist(self._row, count))
        yield self.all()

    def _listed(self, ids: Ids, *, is_whole: bool = False) -> Ranking:
        logits = self._row[ids].astype(np.float64)
        order = ordered(logits)
        ids = ids[order]
        return Ranking(ids, logits[order], self._weights[ids], self._largest, self._total, is_whole)


def shortlist(values: NDArray[np.floating], count: int) -> Ids:
    """Ids, ascending, with the `count` best among them: all above some logit, as a rule few more.

    Those near it are listed too, since temperature may round what is near to what is equal.
    values: [vocab_size], no NaN; count >= 1.
    """
    num_groups = max(LEAST_GROUPS, GROUPS_EACH * count)
    size = len(values) // num_groups
    if size < 2:
        return (values > -np.inf).nonzero()[0]
    # So many groups have a number that is at least `bound`: so there are so many numbers.
    best = np.sort(values[: size * num_groups].reshape(size, num_groups).max(0))[::-1]
    bound = best[count - 1].item()
    lowest = max(float(np.finfo(values.dtype).min), bound - NEAR * (best[0].item() - bound))
    return (values >= values.dtype.type(lowest)).nonzero()[0]


def ordered(scores: Floats) -> Ids:
    """The places of the scores in rank order. scores: [num_scores], no NaN."""
    order: Ids = (-scores).argsort()
    best = scores[order]
    is_less = best[1:] < best[:-1]
    if not is_less.all():
        # Place among the distinct scores, then id, in one integer: far faster than a stable sort of floats.
        places = np.concatenate(([0], is_less.cumsum()))
        order = np.sort(places * len(order) + order) % len(order)
    return order
