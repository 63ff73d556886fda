"""A model without tensors: what its cache holds at a position stands for all tokens up to there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate

from model.interface import MemoryPlan, ModelInfo, SampledToken, StepItem, StepOutput

VOCAB_SIZE = 50
BLOCK_SIZE = 4


def state_after(state: int, token_id: int) -> int:
    """What the cache holds at a token's position, after what it holds at the one before."""
    return zlib.crc32(bytes([token_id]), state)


def checksum(states: Sequence[int], choice: int = 0) -> int:
    """Of all that the cache holds for a sequence: told as the log-probability of the token after it."""
    return zlib.crc32(struct.pack(f"={len(states)}I", *states), choice)


def chosen(states: Sequence[int], choice: int = 0) -> int:
    """The token after positions with these states. Three in four follow a pattern that can be guessed."""
    number = checksum(states, choice)
    return len(states) % 5 if number % 4 else number // 4 % VOCAB_SIZE


def continuation(prompt_ids: Sequence[int], num_tokens: int, choice: int = 0) -> list[int]:
    """What the fake model generates after a prompt, computed without it."""
    return [token_id for token_id, _ in continuation_with_logprobs(prompt_ids, num_tokens, choice)]


def continuation_with_logprobs(
    prompt_ids: Sequence[int], num_tokens: int, choice: int = 0
) -> list[tuple[int, float]]:
    """The same, each with its log-probability."""
    states = list(accumulate(prompt_ids, state_after, initial=0))[1:]
    tokens = []
    for _ in range(num_tokens):
        tokens.append((chosen(states, choice), -float(checksum(states, choice))))
        states.append(state_after(states[-1], tokens[-1][0]))
    return tokens


class FakeModel:
    """A wrong block table, a skipped or a doubled token gives another checksum."""

    def __init__(self, num_blocks: int) -> None:
        self.slots = [0] * (num_blocks * BLOCK_SIZE)
        self.steps: list[int] = []  # tokens in each step
        self.forbidden_ids: list[Sequence[int]] = []  # of each item that was sampled
        self.fails_on: int | None = None  # a token id
        self.info = ModelInfo(
            model_id="fake",
            model_type="fake",
            dtype="int8",
            quantization=None,
            device="none",
            kernels="none",
            library="none",
            fingerprint="0" * 64,
            num_parameters=0,
            vocab_size=VOCAB_SIZE,
            max_positions=1000,
            end_token_ids=(),
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            memory=MemoryPlan(
                base_bytes=0,
                weight_bytes=0,
                kv_bytes_per_token=1,
                kv_cache_tokens=num_blocks * BLOCK_SIZE,
                step_bytes=0,
                free_bytes=0,
                num_sequences=(),
            ),
        )

    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        """Write every item's states to its blocks; then read each whole sequence back."""
        self.steps.append(sum(len(item.token_ids) for item in items))
        for item in items:
            assert item.token_ids, "there is nothing to compute"
            state = self.slots[self._slot(item, item.start - 1)] if item.start else 0
            for position, token_id in enumerate(item.token_ids, item.start):
                state = self.slots[self._slot(item, position)] = state_after(state, token_id)
        return [self._output(item) for item in items]

    def _slot(self, item: StepItem, position: int) -> int:
        return item.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def _output(self, item: StepItem) -> StepOutput:
        if self.fails_on in item.token_ids:
            return StepOutput(error="the fake model does not like this token")
        targets = tuple(-float(target) for target in item.target_ids)
        if item.sample is None:
            return StepOutput(target_logprobs=targets)
        num_known = item.start + len(item.token_ids) - item.num_drafts
        assert len(item.sample.token_ids) == num_known, "the wish is for another token"
        held = [self.slots[self._slot(item, p)] for p in range(item.start + len(item.token_ids))]
        tokens: list[SampledToken] = []
        for num_held in range(num_known, len(held) + 1):
            if tokens and item.token_ids[num_held - 1 - item.start] != tokens[-1].token_id:
                break
            states, choice = held[:num_held], item.sample.choice
            self.forbidden_ids.append(item.sample.forbidden_ids)
            tokens.append(
                SampledToken(token_id=chosen(states, choice), logprob=-float(checksum(states, choice)))
            )
        return StepOutput(tokens=tuple(tokens), target_logprobs=targets)
