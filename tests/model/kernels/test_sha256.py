"""SHA-256 in lanes, and of memory in pieces: hashlib's, to the last bit."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.hashing import PIECE_BYTES, digests_of_pieces
from model.kernels.library import Kernels
from tests.model.kernels.paths import EACH
from tests.model.kernels.test_integer import ANY_EXAMPLE


def random_bytes(num_bytes: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_bytes)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def by_hashlib(memory: Tensor, size: int) -> bytes:
    data = memory.numpy().tobytes()
    return b"".join(
        hashlib.sha256(data[begin : begin + size]).digest() for begin in range(0, len(data), size)
    )


@EACH
@given(count=st.integers(1, 40), size=st.integers(1, 9).map(lambda chunks: 64 * chunks))
@ANY_EXAMPLE
def test_each_message_has_the_hash_that_hashlib_finds(kernels: Kernels, count: int, size: int) -> None:
    memory = random_bytes(count * size)
    assert kernels.sha256(memory.view(count, size)) == by_hashlib(memory, size)


@EACH
def test_a_message_of_no_whole_chunks_is_refused(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="messages have 100 bytes, must be a multiple of 64"):
        kernels.sha256(random_bytes(200).view(2, 100))


@EACH
@pytest.mark.parametrize("more", [-1, 0, 1, 64])
@pytest.mark.parametrize("num_pieces", [0, 1, 16, 17])
def test_memory_has_the_same_hashes_with_kernels_and_without(
    kernels: Kernels, num_pieces: int, more: int
) -> None:
    memory = random_bytes(max(0, num_pieces * PIECE_BYTES + more))
    expected = by_hashlib(memory, PIECE_BYTES)
    assert digests_of_pieces(memory, kernels) == expected
    assert digests_of_pieces(memory, None) == expected
