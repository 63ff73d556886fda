"""From rows of logits to tokens and their log-probabilities: chain, softmax, draw.

Each row is handled by itself, in float64: what its neighbours are cannot change a bit of it.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence

import msgspec
from torch import Tensor

from model.interface import SampledToken, SampleRequest, StepOutput
from model.sampling.philox import uniform
from model.sampling.processors import Chain, Observer, build_chain
from model.sampling.ranking import BeyondHeadError, Ranking, Softmax

logger = logging.getLogger(__name__)


class SamplingError(Exception):
    """No token can be chosen from this row. The message is a sentence for the client."""


class Sampler:
    """Chooses tokens. It has no state: a draw depends on the seed, the choice and the position alone."""

    def sample(self, logits: Tensor, requests: Sequence[SampleRequest]) -> list[StepOutput]:
        """A token or an error for each row. logits: [num_rows, vocab_size], float32, left as they are."""
        return [self._outcome(row, request) for row, request in zip(logits.cpu(), requests, strict=True)]

    def verify(self, logits: Tensor, request: SampleRequest, draft_ids: Sequence[int]) -> StepOutput:
        """The token after the known ones and, as long as each draft is the token chosen, the one after it.

        Each is chosen as if it were alone. A row that fails after the first is left to its own step, where
        it fails again. logits: [1 + num_drafts, vocab_size], float32, left as they are.
        """
        [output] = self.sample(logits[:1], [request])
        tokens = list(output.tokens)
        for row, draft_id in enumerate(draft_ids, 1):
            if not tokens or tokens[-1].token_id != draft_id:
                break
            known_ids = (*request.token_ids, *draft_ids[:row])
            [further] = self.sample(
                logits[row : row + 1], [msgspec.structs.replace(request, token_ids=known_ids)]
            )
            if further.error is not None:
                break
            tokens += further.tokens
        return msgspec.structs.replace(output, tokens=tuple(tokens))

    def _outcome(self, row: Tensor, request: SampleRequest) -> StepOutput:
        try:
            return StepOutput(tokens=(self.sample_row(row, request),))
        except SamplingError as error:
            return StepOutput(error=str(error))
        except Exception:  # a bug that this row's parameters bring out must not end its neighbours
            logger.exception("a token could not be chosen")
            return StepOutput(error="choosing a token failed")

    def sample_row(
        self, row: Tensor, request: SampleRequest, observer: Observer | None = None
    ) -> SampledToken:
        """The token that follows `request.token_ids`. row: [vocab_size], float32, left as it is.

        Raises `SamplingError` for NaN or infinity in the row, and if every id is forbidden.
        """
        params, row = request.params, row.cpu()
        best_id, raw_best = _best(row)
        if not math.isfinite(raw_best):
            raise SamplingError("the model's logits hold NaN or infinity, so no token can be chosen")
        chain = build_chain(request)
        if observer is not None:
            chain(row.double(), observer)
        edited, best = chain.edit(row), raw_best
        if chain.edits:
            best_id, best = _best(edited)
            if best == -math.inf:
                raise SamplingError("every token is forbidden here, so none can be chosen")

        softmax: Softmax | Ranking
        if params.is_greedy:
            token_id, logit, softmax = best_id, best, Softmax(edited.numpy(), best)
        else:
            u = uniform(params.seed, request.choice, len(request.token_ids))
            softmax, place = _draw(chain.heads(edited, best, max(1, params.top_n_tokens)), chain, u)
            token_id, logit = softmax.ids[place].item(), softmax.logits[place].item()
        if params.logprobs_mode == "raw":
            logit, softmax = row[token_id].item(), Softmax(row.numpy(), raw_best)
        top = softmax.best(params.top_n_tokens) if params.top_n_tokens else ()
        return SampledToken(
            token_id=token_id,
            logprob=softmax.logprob(logit),
            top=tuple((i, softmax.logprob(logit)) for i, logit in top),
        )


def draw(row: Tensor, u: float) -> int:
    """The inverse of the cumulative distribution in rank order: the first id at which the sum exceeds u.

    row: [vocab_size], float64 logits; u in [0, 1).
    """
    chain = Chain()
    ranking, place = _draw(chain.heads(row, row.max().item(), 1), chain, u)
    return int(ranking.ids[place])


def _draw(heads: Iterator[Ranking], chain: Chain, u: float) -> tuple[Ranking, int]:
    """What the chain leaves of the first head that is long enough for it and for u; and the place drawn."""
    for head in heads:
        try:
            ranking = chain.cut(head)
            return ranking, ranking.num_to_mass(u, is_beyond=True) - 1
        except BeyondHeadError:
            continue
    raise AssertionError("the last of the heads is long enough")


def _best(row: Tensor) -> tuple[int, float]:
    """The first of the largest logits, and the logit; the first NaN if there is one. row: [vocab_size]."""
    values = row.numpy()  # whose argmax takes an eighth of the time of PyTorch's
    best_id = values.argmax()
    return int(best_id), values[best_id].item()


def digest(row: Tensor) -> int:
    """64 bits of BLAKE2b over the row's bytes: equal digests, equal logits. row: [vocab_size], float32."""
    data = row.cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
