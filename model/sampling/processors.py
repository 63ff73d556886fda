"""The chain between a row of logits and the softmax that is drawn from: what each parameter does to it.

A processor sees one row and knows nothing of other rows, seeds or draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.interface import SampleRequest
from model.sampling.ranking import num_to_mass, prefix_of_length, prefix_of_mass, ranked


class LogitsProcessor(Protocol):
    """One transformation of one row."""

    def __call__(self, row: Tensor) -> Tensor:
        """row: [vocab_size], float64, -inf for what cannot be chosen -> a new row; `row` stays as it is."""
        ...


Observer = Callable[[LogitsProcessor, Tensor], None]


@dataclass(frozen=True, slots=True)
class Chain:
    """Processors, one after another."""

    processors: tuple[LogitsProcessor, ...]

    def __call__(self, row: Tensor, observer: Observer | None = None) -> Tensor:
        """row: [vocab_size], float64. `observer` is shown each processor with the row it gave."""
        for processor in self.processors:
            row = processor(row)
            if observer is not None:
                observer(processor, row)
        return row


def build_chain(request: SampleRequest) -> Chain:
    """The processors that this request needs, in the one fixed order; none for a neutral value.

    A greedy request stops after the penalties: temperature and cuts never move the best token.
    """
    params = request.params
    output_ids = request.token_ids[request.num_prompt_tokens :]
    chain: list[LogitsProcessor] = []
    if params.logit_bias:
        chain.append(LogitBias(dict(params.logit_bias)))
    if request.forbidden_ids:
        chain.append(ForbiddenIds(request.forbidden_ids))
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenalty(params.repetition_penalty, request.token_ids))
    if params.frequency_penalty != 0.0:
        chain.append(FrequencyPenalty(params.frequency_penalty, output_ids))
    if params.presence_penalty != 0.0:
        chain.append(PresencePenalty(params.presence_penalty, output_ids))
    if params.is_greedy:
        return Chain(tuple(chain))
    if params.temperature != 1.0:
        chain.append(Temperature(params.temperature))
    if params.top_k != 0:
        chain.append(TopK(params.top_k))
    if params.top_p != 1.0:
        chain.append(TopP(params.top_p))
    if params.min_p != 0.0:
        chain.append(MinP(params.min_p))
    if params.typical_p != 1.0:
        chain.append(TypicalP(params.typical_p))
    return Chain(tuple(chain))


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
        return row.index_fill(0, _to_tensor(self.ids, row.device), -math.inf)


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Makes every token seen in prompt or output less likely, once: CTRL (Keskar et al. 2019)."""

    penalty: float
    token_ids: Sequence[int]

    def __call__(self, row: Tensor) -> Tensor:
        """logit / penalty if the logit is positive, else logit * penalty."""
        ids = _to_tensor(set(self.token_ids), row.device)
        seen = row[ids]
        return row.index_copy(0, ids, torch.where(seen > 0, seen / self.penalty, seen * self.penalty))


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
class TopK:
    """Keeps the k most probable in rank order: of the tied the lowest ids, never more than k."""

    k: int

    def __call__(self, row: Tensor) -> Tensor:
        """-inf for the others."""
        return row if self.k >= row.numel() else _keep(row, prefix_of_length(row, self.k).mask(row))


@dataclass(frozen=True, slots=True)
class TopP:
    """Keeps the shortest prefix of rank order of probability p or more (Holtzman et al. 2020)."""

    p: float

    def __call__(self, row: Tensor) -> Tensor:
        """-inf for the others."""
        probs = row.softmax(0)
        return _keep(row, prefix_of_mass(probs, self.p).mask(probs))


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps what is at least `min_p` times as probable as the most probable (Nguyen et al. 2024)."""

    min_p: float

    def __call__(self, row: Tensor) -> Tensor:
        """-inf where logit < largest logit + ln(min_p)."""
        return _keep(row, row >= row.max() + math.log(self.min_p))


@dataclass(frozen=True, slots=True)
class TypicalP:
    """Keeps the tokens whose surprise is nearest to the expected one, the entropy (Meister et al. 2022).

    By |surprise - entropy|, the smallest first, ties by the lowest id: the shortest prefix of
    probability p or more.
    """

    p: float

    def __call__(self, row: Tensor) -> Tensor:
        """-inf for the others."""
        probs, logprobs = row.softmax(0), row.log_softmax(0)
        # NumPy sums in one order; PyTorch splits a long sum among however many threads there are.
        entropy = float(torch.special.entr(probs).cpu().numpy().sum())
        ids = ranked(-(logprobs + entropy).abs(), row.numel())
        kept = torch.from_numpy(ids[: num_to_mass(probs.cpu().numpy()[ids], self.p)]).to(row.device)
        return _keep(row, torch.zeros_like(row, dtype=torch.bool).index_fill_(0, kept, True))


def _to_tensor(ids: Collection[int], device: torch.device) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.int64, device=device)


def _add(row: Tensor, addends: Mapping[int, float]) -> Tensor:
    values = torch.tensor(list(addends.values()), dtype=row.dtype, device=row.device)
    return row.index_add(0, _to_tensor(addends, row.device), values)


def _keep(row: Tensor, mask: Tensor) -> Tensor:
    return row.where(mask, -math.inf)
