"""The linear layer, computed so that a row's bits depend on that row alone.

Knows nothing of what the rows mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.library import Kernels

# A matrix product may round a row differently when the number of rows changes: the library picks
# another kernel. With the number of rows fixed, it does not, whatever the other rows hold.
ROW_BLOCK = 16

# Small products with odd sizes still rounded a row by its place among the others (seen with MKL: inner
# size not a multiple of 4, fewer than 12 columns). Sums over whole vectors, padded with zeros, do not.
VECTOR = 16  # divides ROW_BLOCK, too


def padded(x: Tensor, dim: int = -1) -> Tensor:
    """x with zeros appended along `dim` up to a multiple of VECTOR; x itself if it is one already."""
    num_missing = -x.shape[dim] % VECTOR
    if not num_missing:
        return x
    shape = list(x.shape)
    shape[dim] = num_missing
    return torch.cat((x, x.new_zeros(shape)), dim)


@contextmanager
def _one_thread() -> Iterator[None]:
    """With several, a library may cut a long sum into a part for each (seen with MKL and AMX)."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def linear_in_row_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, each row with the same bits however many rows and threads there are.

    x: [num_rows, in], weight: [out, in], bias: [out] -> [num_rows, out].
    """
    num_rows = x.shape[0]
    num_columns = weight.shape[0]
    if num_columns < VECTOR:
        weight = padded(weight, 0)
    x, weight = padded(padded(x), 0), padded(weight)
    out = x.new_empty(x.shape[0], weight.shape[0])
    transposed = weight.t()
    with _one_thread():
        for start in range(0, x.shape[0], ROW_BLOCK):
            rows = slice(start, start + ROW_BLOCK)
            torch.mm(x[rows], transposed, out=out[rows])
    out = out[:num_rows, :num_columns]
    return out if bias is None else out.add_(bias)


class Linear(nn.Module):
    """`y = W x + b`. In training, the library's own product; in evaluation, a row by itself."""

    def __init__(self, in_features: int, out_features: int, has_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if has_bias else None
        self.kernels: Kernels | None = None

    def kernel_bytes(self, num_rows: int) -> int:
        """What a kernel takes beside its result: the rows in float32, filled up to whole vectors."""
        return num_rows * (self.weight.shape[1] + 2 * VECTOR) * torch.float32.itemsize

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        if self.training:
            return F.linear(x, self.weight, self.bias)
        if self.kernels is not None:
            return self.kernels.linear(x, self.weight, self.bias)
        return linear_in_row_blocks(x, self.weight, self.bias)
