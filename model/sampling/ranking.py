"""Rank order: the larger first, ties by the lowest id. Every cut and every draw is a prefix of it.

Knows nothing of parameters or seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A vocabulary is sorted whole only where its head, the ids more probable than this, lacks the mass.
HEAD_PROB = 1e-5


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first ids in the rank order of some scores: all above `score`, and `num_tied` that equal it.

    To find it takes the sorted scores alone, without their ids: these come out the same from every sort.
    """

    score: float
    num_tied: int  # at least 1

    def mask(self, scores: Tensor) -> Tensor:
        """True for the ids of the prefix. scores: [vocab_size] -> [vocab_size], bool."""
        mask = scores > self.score
        mask[self._tied(scores)] = True
        return mask

    def last_id(self, scores: Tensor) -> int:
        """The last id of the prefix. scores: [vocab_size]."""
        return int(self._tied(scores)[-1])

    def _tied(self, scores: Tensor) -> Tensor:
        return (scores == self.score).nonzero().squeeze(1)[: self.num_tied]


def prefix_of_length(scores: Tensor, length: int) -> Prefix:
    """The `length` first ids. scores: [vocab_size], no NaN; 1 <= length <= vocab_size."""
    return _prefix(scores.topk(length).values.cpu().numpy(), length)


def prefix_of_mass(probs: Tensor, mass: float, *, is_beyond: bool = False) -> Prefix:
    """The shortest prefix whose sum is at least `mass`; with `is_beyond`, greater than `mass`.

    Sums are float64, in rank order. If rounding leaves even the sum of all short of `mass`, the prefix
    ends with the last id that adds to it. probs: [vocab_size], float64, of sum 1; 0 <= mass <= 1.
    """
    for floor in (HEAD_PROB, 0.0):
        best = np.sort(probs[probs > floor].cpu().numpy())[::-1]
        length = num_to_mass(best, mass, is_beyond=is_beyond)
        if length <= len(best):
            return _prefix(best, length)
    return _prefix(best, num_to_mass(best, best.cumsum()[-1]))


def num_to_mass(probs: NDArray[np.float64], mass: float, *, is_beyond: bool = False) -> int:
    """How many of `probs`, from the first, sum to `mass`, or beyond; one more than there are if none do."""
    # A cumulative sum is sequential, so that of a head is the same with and without the rest.
    return int(np.searchsorted(probs.cumsum(), mass, side="right" if is_beyond else "left")) + 1


def ranked(scores: Tensor, count: int) -> NDArray[np.int64]:
    """The first `count` ids in rank order; fewer if fewer are above -inf. scores: [vocab_size], no NaN."""
    lowest = torch.finfo(scores.dtype).min
    if count < scores.numel():
        lowest = max(lowest, scores.topk(count).values[-1].item())
    ids = (scores >= lowest).nonzero().squeeze(1)  # ascending
    # Place among the distinct scores, then id, in one integer: far faster than a stable sort of floats.
    _, places = np.unique(-scores[ids].cpu().numpy(), return_inverse=True)
    order = np.sort(places * len(places) + np.arange(len(places)))[:count] % len(places)
    ranked_ids: NDArray[np.int64] = ids.cpu().numpy()[order]
    return ranked_ids


def _prefix(best: NDArray[np.float64], length: int) -> Prefix:
    """The prefix whose scores are the `length` first of `best`, which holds the best scores in order."""
    score = best[length - 1]
    return Prefix(float(score), length - int(np.count_nonzero(best > score)))
