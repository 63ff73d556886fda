"""The chain between a row of logits and the softmax that is drawn from: what each parameter does to it.

A processor sees one row and knows nothing of other rows, seeds or draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.interface import SampleRequest
from model.sampling.ranking import BeyondHeadError, Floats, Ranking, Softmax, num_to_mass, ordered, shortlist


class LogitsProcessor(Protocol):
    """One transformation of one row."""

    def __call__(self, row: Tensor) -> Tensor:
        """row: [vocab_size], float64, -inf for what cannot be chosen -> a new row; `row` stays as it is."""
        ...


# Taken for a smaller penalty, too: it leaves all chance to the best of what was seen as well. A float32 over
# this is a double; over less it may be infinite, and then no log-probability is a number.
LEAST_PENALTY = 1e-200

Observer = Callable[[LogitsProcessor, Tensor], None]


class Cut(ABC):
    """A processor that leaves some ids no chance: by their rank, so that it can do with a ranking."""

    __slots__ = ()

    def __call__(self, row: Tensor) -> Tensor:
        """-inf for the ids that are cut."""
        ranking = self.cut(Softmax(row.numpy(), row.max().item()).all())
        kept = torch.full_like(row, -math.inf)
        kept.numpy()[ranking.ids] = ranking.logits
        return kept

    @abstractmethod
    def cut(self, ranking: Ranking) -> Ranking:
        """What is left. Raises `BeyondHeadError` if that may hold ids that are not listed."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Processors, one after another: edits of some ids' logits, temperature, cuts.

    Temperature and cuts know no ids, so what is sure to be cut they need not see.
    """

    edits: tuple[LogitsProcessor, ...] = ()
    temperature: Temperature | None = None
    cuts: tuple[Cut, ...] = ()

    @property
    def processors(self) -> tuple[LogitsProcessor, ...]:
        """All of them, in order."""
        return (*self.edits, *([self.temperature] if self.temperature else ()), *self.cuts)

    def __call__(self, row: Tensor, observer: Observer | None = None) -> Tensor:
        """row: [vocab_size], float64. `observer` is shown each processor with the row it gave."""
        for processor in self.processors:
            row = processor(row)
            if observer is not None:
                observer(processor, row)
        return row

    def edit(self, row: Tensor) -> Tensor:
        """row: [vocab_size], float32 -> in float64 after the edits; the row itself if there are none."""
        for processor in self.edits:
            row = processor(row.double())
        return row

    def heads(self, row: Tensor, largest: float, count: int) -> Iterator[Ranking]:
        """Longer and longer rankings after temperature, the last of them as long as a cut may need.

        Each of at least `count` ids, if so many are above -inf. row: [vocab_size], as edited, `largest` of it
        finite.
        """
        first = self.cuts[0] if self.cuts else None
        ids = shortlist(row.numpy(), first.k) if isinstance(first, TopK) else None
        if ids is not None:
            row = torch.from_numpy(row.numpy()[ids])
        if self.temperature is not None:
            row, largest = self.temperature(row.double()), 0.0
        softmax = Softmax(row.numpy(), largest)
        if ids is None:
            yield from softmax.heads(count)
        else:
            yield softmax.all().named(ids)

    def cut(self, ranking: Ranking) -> Ranking:
        """What the cuts leave of one of `heads`. Raises `BeyondHeadError` if that is too short."""
        for cut in self.cuts:
            ranking = cut.cut(ranking)
        return ranking


def build_chain(request: SampleRequest) -> Chain:
    """The processors that this request needs, in the one fixed order; none for a neutral value.

    A greedy request stops after the penalties: temperature and cuts never move the best token.
    """
    params = request.params
    output_ids = request.token_ids[request.num_prompt_tokens :]
    edits: list[LogitsProcessor] = []
    if params.logit_bias:
        edits.append(LogitBias(dict(params.logit_bias)))
    if request.forbidden_ids:
        edits.append(ForbiddenIds(request.forbidden_ids))
    if params.repetition_penalty != 1.0:
        edits.append(RepetitionPenalty(params.repetition_penalty, request.token_ids))
    if params.frequency_penalty != 0.0:
        edits.append(FrequencyPenalty(params.frequency_penalty, output_ids))
    if params.presence_penalty != 0.0:
        edits.append(PresencePenalty(params.presence_penalty, output_ids))
    if params.is_greedy:
        return Chain(tuple(edits))
    cuts: list[Cut] = []
    if params.top_k != 0:
        cuts.append(TopK(params.top_k))
    if params.top_p != 1.0:
        cuts.append(TopP(params.top_p))
    if params.min_p != 0.0:
        cuts.append(MinP(params.min_p))
    if params.typical_p != 1.0:
        cuts.append(TypicalP(params.typical_p))
    temperature = Temperature(params.temperature) if params.temperature != 1.0 else None
    return Chain(tuple(edits), temperature, tuple(cuts))


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Adds to the logits of the ids named."""

    bias: Mapping[int, float]

    def __call__(self, row: Tensor) -> Tensor:
        """logit + bias."""
        return _add(row, self.bias)


@dataclass(frozen=True, slots=True)
class ForbiddenIds:
    """Leaves the ids named no chance."""

    ids: Sequence[int]

    def __call__(self, row: Tensor) -> Tensor:
        """-inf."""
        return _with(row, self.ids, lambda _: np.array(-math.inf))


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Makes every token seen in prompt or output less likely, once: CTRL (Keskar et al. 2019)."""

    penalty: float
    token_ids: Sequence[int]

    def __call__(self, row: Tensor) -> Tensor:
        """logit / penalty if the logit is positive, else logit * penalty."""
        penalty = max(self.penalty, LEAST_PENALTY)
        return _with(
            row, set(self.token_ids), lambda seen: np.where(seen > 0, seen / penalty, seen * penalty)
        )


@dataclass(frozen=True, slots=True)
class FrequencyPenalty:
    """Makes a token of the output less likely each time that it is there (OpenAI's definition)."""

    penalty: float
    output_ids: Sequence[int]

    def __call__(self, row: Tensor) -> Tensor:
        """logit - penalty * count."""
        return _add(row, {i: -self.penalty * count for i, count in Counter(self.output_ids).items()})


@dataclass(frozen=True, slots=True)
class PresencePenalty:
    """Makes every token of the output less likely, once (OpenAI's definition)."""

    penalty: float
    output_ids: Sequence[int]

    def __call__(self, row: Tensor) -> Tensor:
        """logit - penalty."""
        return _add(row, dict.fromkeys(self.output_ids, -self.penalty))


@dataclass(frozen=True, slots=True)
class Temperature:
    """Sharpens (below 1) or flattens (above 1) the distribution."""

    temperature: float

    def __call__(self, row: Tensor) -> Tensor:
        """(logit - largest logit) / temperature: the shift changes no probability, and nothing overflows."""
        return (row - row.max()) / self.temperature


@dataclass(frozen=True, slots=True)
class TopK(Cut):
    """Keeps the k most probable in rank order: of the tied the lowest ids, never more than k."""

    k: int

    def cut(self, ranking: Ranking) -> Ranking:
        """The first k."""
        return ranking.first(self.k)


@dataclass(frozen=True, slots=True)
class TopP(Cut):
    """Keeps the shortest prefix of rank order of probability p or more (Holtzman et al. 2020)."""

    p: float

    def cut(self, ranking: Ranking) -> Ranking:
        """That prefix."""
        return ranking.first(ranking.num_to_mass(self.p))


@dataclass(frozen=True, slots=True)
class MinP(Cut):
    """Keeps what is at least `min_p` times as probable as the most probable (Nguyen et al. 2024)."""

    min_p: float

    def cut(self, ranking: Ranking) -> Ranking:
        """Those of a logit >= largest logit + ln(min_p)."""
        is_kept = ranking.logits >= ranking.logits[0] + math.log(self.min_p)
        # If all that are listed are kept, one that is not may be, too.
        return ranking.first(np.count_nonzero(is_kept) + is_kept.all())


@dataclass(frozen=True, slots=True)
class TypicalP(Cut):
    """Keeps the tokens whose surprise is nearest to the expected one, the entropy (Meister et al. 2022).

    By |surprise - entropy|, the smallest first, ties by the lowest id: the shortest prefix of
    probability p or more.
    """

    p: float

    def cut(self, ranking: Ranking) -> Ranking:
        """That prefix, again in rank order."""
        if not ranking.is_whole:
            raise BeyondHeadError
        probs = ranking.probs
        surprise = -ranking.logprob(0.0) - ranking.logits
        distance = np.abs(surprise - (probs * surprise).sum())
        by_id = ranking.ids.argsort()
        order = by_id[ordered(-distance[by_id])]
        return ranking.at(np.sort(order[: num_to_mass(probs[order].cumsum(), self.p)]))


def _with(row: Tensor, ids: Collection[int], change: Callable[[Floats], Floats]) -> Tensor:
    """The row with the logits of these ids, each named once, changed."""
    changed = row.clone()
    values, places = changed.numpy(), np.fromiter(ids, np.int64, len(ids))
    values[places] = change(values[places])
    return changed


def _add(row: Tensor, addends: Mapping[int, float]) -> Tensor:
    return _with(
        row, addends, lambda logits: logits + np.fromiter(addends.values(), np.float64, len(addends))
    )
