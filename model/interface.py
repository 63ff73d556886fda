"""The seam: what an engine may ask of a model. Ints, floats and strings cross it, and nothing else does.

Torch-free. `server/engine` decides which ids run and when; a `Model` turns them into the next ids. What is
made anew in every step is a struct, which costs a fifth of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from model.sampling.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a model takes of its device's memory, in bytes; all of it is taken before the first request."""

    base_bytes: int  # interpreter and libraries, measured; 0 on a GPU, of whose memory they take none
    weight_bytes: int  # parameters, shared ones once, and the tables of positions
    kv_bytes_per_token: int
    kv_cache_tokens: int  # of all sequences together
    step_bytes: int  # the temporaries of the largest step
    free_bytes: int  # what could be taken when this was planned, `base_bytes` being taken already
    num_sequences: tuple[tuple[int, int], ...]  # (a length in tokens, how many so long the cache holds)

    @property
    def kv_cache_bytes(self) -> int:
        """The keys and values of all tokens."""
        return self.kv_cache_tokens * self.kv_bytes_per_token

    @property
    def total_bytes(self) -> int:
        """What the process takes, or on a GPU its part there."""
        return self.base_bytes + self.weight_bytes + self.kv_cache_bytes + self.step_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model is, and how much it can hold. Sizes in tokens, blocks or bytes as named."""

    model_id: str
    model_type: str
    dtype: str
    quantization: str | None  # the format of linear layers' weights, if they are not of `dtype`
    device: str
    kernels: str
    library: str  # PyTorch, and what it computes with
    fingerprint: str  # SHA-256 over configuration, tokenizer and weights, in hexadecimal; "" if only planned
    num_parameters: int
    vocab_size: int
    max_positions: int  # the longest sequence, prompt and output together
    end_token_ids: tuple[int, ...]  # the model's own: choosing one of them ends an answer
    block_size: int  # tokens in a block of the KV cache
    num_blocks: int
    memory: MemoryPlan

    def answer_fingerprint(self, version: str) -> str:
        """What an answer's bits depend on beside its request; `version` is that of the server."""
        parts = (self.fingerprint[:16], self.dtype, self.quantization, self.kernels, self.library, version)
        return "-".join(filter(None, parts))

    @property
    def max_total_tokens(self) -> int:
        """The longest sequence that can be served: what the positions allow and the cache holds."""
        return min(self.max_positions, self.num_blocks * self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What a model folder is, as far as its configuration and the headers of its weights tell."""

    model_type: str
    dtype: str  # that `auto` chooses
    num_parameters: int
    parts: dict[str, int]  # the parameters of each part of the decoder
    decoder: dict[str, bool | int | float | str]  # the fields of its description
    num_files: int
    num_tensors: int
    num_bytes: int  # of the tensors, as stored
    stored_dtypes: dict[str, int]  # how many tensors are of each format
    end_token_ids: tuple[int, ...]
    has_chat_template: bool
    unusual: tuple[str, ...]  # a sentence for each thing that its owner may not expect


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """The limit that a machine sets to a model: what a step must read and multiply, and how fast that goes.

    A step can be no faster than the slower of the two (Williams et al. 2009). Of a mixture, the experts of
    one token count; of attention, the cache that it reads.
    """

    num_threads: int  # with which it was measured
    bytes_per_s: float  # of memory read
    multiplications_per_s: float  # each with its addition
    weight_bytes: float  # read once in a step
    kv_bytes_per_token: int
    layer_multiplications: float  # of each token computed
    output_multiplications: int  # of each token sampled

    def least_s(self, num_tokens: int, num_sampled: int, num_cached: int = 0) -> float:
        """The least time of a step of so many tokens, which reads so many of the cache."""
        num_bytes = self.weight_bytes + num_cached * self.kv_bytes_per_token
        work = num_tokens * self.layer_multiplications + num_sampled * self.output_multiplications
        return max(num_bytes / self.bytes_per_s, work / self.multiplications_per_s)


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The wish for the token after the last known one of a `StepItem`. The model only reads the lists."""

    params: SamplingParams
    token_ids: Sequence[int]  # every known token, prompt first: what penalties look at
    num_prompt_tokens: int
    choice: int = 0  # which of several answers to one prompt this is
    forbidden_ids: Sequence[int] = ()  # ids that may not be chosen now


class StepItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sequence's part of one step: compute `token_ids`, then sample if asked.

    The last `num_drafts` of them are guesses at what the model will choose after those before: whoever asks
    for a token gets one more for each of them that is right, and the same ones as without guesses.

    The keys and values of positions below `start` are in the cache already. Position p lives in block
    `block_table[p // block_size]`; the table reaches at least to the last token of this item.
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    sample: SampleRequest | None = None
    num_drafts: int = 0  # 0 unless it samples; the wish is for the token after the last that is no guess
    # The tokens that follow the first rows of this item: asks for the log-probability of each.
    target_ids: Sequence[int] = ()


class SampledToken(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One chosen token. Log-probabilities are natural logarithms, of the softmax that the request named."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), best first, ties by lowest id


class StepOutput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one `StepItem` came to. There are no `tokens` if there is an `error`."""

    tokens: tuple[SampledToken, ...] = ()  # one if asked, and one more for each guess that was right
    target_logprobs: tuple[float, ...] = ()
    error: str | None = None  # this item alone failed; its neighbours are untouched


class Model(Protocol):
    """A loaded model with its cache. Not thread-safe."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        ...

    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        """Run one step; one output for each item, in order. Raises only if the whole step failed."""
        ...
