"""How one generation wants its tokens chosen: the fields, their bounds, their neutral values.

Torch-free, and the one place for a field's bounds and meaning: the wire schema inherits them from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval, MaxLen

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1

LogprobsMode = Literal["raw", "processed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Each default leaves the softmax as it is. `temperature=0` is greedy: no draw, ties to the lowest id."""

    temperature: Annotated[float, Interval(ge=0.0, le=100.0), "divides the logits; 0 is greedy"] = 1.0
    top_k: Annotated[int, Interval(ge=0, le=MAX_TOP_K), "keep so many of the best; 0 keeps all"] = 0
    top_p: Annotated[float, Interval(gt=0.0, le=1.0), "keep the most probable up to this mass"] = 1.0
    typical_p: Annotated[float, Interval(gt=0.0, le=1.0), "the same, nearest to the entropy first"] = 1.0
    min_p: Annotated[float, Interval(ge=0.0, le=1.0), "keep at least this part of the best one"] = 0.0
    repetition_penalty: Annotated[float, Interval(gt=0.0, le=10.0), "over prompt and output (CTRL)"] = 1.0
    frequency_penalty: Annotated[float, Interval(ge=-2.0, le=2.0), "for each time in the output"] = 0.0
    presence_penalty: Annotated[float, Interval(ge=-2.0, le=2.0), "for being in the output"] = 0.0
    logit_bias: Annotated[tuple[tuple[int, float], ...], MaxLen(300), "added to the logits of ids"] = ()
    seed: Annotated[int, Interval(ge=0, le=MAX_SEED), "of the draws; absent: the server draws one"] = 0
    top_n_tokens: Annotated[int, Interval(ge=0, le=20), "how many alternatives to report"] = 0
    logprobs_mode: Annotated[LogprobsMode, "of the softmax before or after the chain"] = "processed"

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken without a draw."""
        return self.temperature == 0.0
