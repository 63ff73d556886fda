"""SHA-256 of memory, piece by piece: which threads, and the lanes of a vector, can find at once."""

from __future__ import annotations

import hashlib

from torch import Tensor

from model.kernels.library import Kernels

PIECE_BYTES = 2**17


def digests_of_pieces(memory: Tensor, kernels: Kernels | None) -> bytes:
    """The SHA-256 of each 128 KiB, one after the other; the last may be of less.

    memory: [num_bytes], uint8. By `kernels` if they are faster: the same, sooner.
    """
    num_whole = len(memory) // PIECE_BYTES if kernels is not None and kernels.hashes_fast else 0
    by_kernels, rest = memory.tensor_split([num_whole * PIECE_BYTES])
    found = kernels.sha256(by_kernels.view(num_whole, PIECE_BYTES)) if kernels and num_whole else b""
    left = rest.numpy().data
    pieces = (left[begin : begin + PIECE_BYTES] for begin in range(0, len(left), PIECE_BYTES))
    return found + b"".join(hashlib.sha256(piece).digest() for piece in pieces)
