"""A linear layer whose weight is held in fewer bits, and decoded tile by tile where it is used.

Decides how codes, scales and zero points become a weight. Knows nothing of files. A faster kernel for a
format replaces `forward`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.kernels.library import Kernels
from model.linear import VECTOR, linear_in_row_blocks

TILE_ELEMENTS = 2**18  # of the weight, decoded at a time: 1 MiB of float32, which stays in a core's own cache

# The tensors of a packed weight that have no row for each output: all parts of a fused layer share them.
SHARED = frozenset({"order", "table"})


class QuantizedLinear(nn.Module):
    """`y = W x + b`, where `W[o, i] = scales[o, g] * (value of codes[o, i] - zeros[o, g])`, in float32.

    g is i's group: the inputs are cut into as many equal groups as `scales` has columns. The weight is then
    rounded to x's dtype, and multiplied as `Linear` does it, in fixed blocks of rows, and in fixed tiles of
    outputs: a row's bits depend on that row alone. Codes past the last input fill up its group.
    """

    CODES_PER_BYTE: int

    codes: Tensor  # [out_features, num_groups * group_size / CODES_PER_BYTE], int8 or uint8
    scales: Tensor  # [out_features, num_groups], float16, bfloat16 or float32
    zeros: Tensor | None  # [out_features, num_groups], of the codes' dtype; all 0 if absent
    grids: Tensor | None  # [out_features, any], uint8: what else a format has; see int4.py
    order: Tensor | None  # [in_features]: which input stands at each column; as they come if absent
    table: Tensor | None  # [2 ** bits], float32: each code's value, if that is not the code itself

    def __init__(self, in_features: int, packed: Mapping[str, Tensor], has_bias: bool) -> None:
        """packed: tensors by name, as above, or without memory. Raises `ValueError` if they do not fit."""
        super().__init__()
        for name in ("codes", "scales", "zeros", "grids", "order", "table"):
            tensor = packed.get(name)
            setattr(self, name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))
        self.in_features = in_features
        self.out_features, num_bytes = self.codes.shape
        num_columns = num_bytes * self.CODES_PER_BYTE
        num_groups = self.scales.shape[1]
        if num_columns % num_groups or not 0 <= num_columns - in_features < num_columns // num_groups:
            raise ValueError(f"has {num_columns} inputs in {num_groups} groups, expected {in_features}")
        bias = torch.empty(self.out_features, device=self.codes.device)
        self.bias = nn.Parameter(bias, requires_grad=False) if has_bias else None
        rows = TILE_ELEMENTS // num_columns // VECTOR * VECTOR
        self.tile_rows = max(VECTOR, rows)
        self.kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        if self.order is not None:
            x = x.index_select(1, self.order)
        if self.kernels is not None and self.codes.shape[1] % self.scales.shape[1] == 0:
            return self.kernels.linear_packed(x, self.codes, self.scales, self.zeros, self.table, self.bias)
        out = x.new_empty(x.shape[0], self.out_features)
        for start in range(0, self.out_features, self.tile_rows):
            tile = slice(start, start + self.tile_rows)
            out[:, tile] = linear_in_row_blocks(x, self.decoded(tile).to(x.dtype), None)
        return out if self.bias is None else out.add_(self.bias)

    def temporary_bytes(self, num_rows: int) -> int:
        """What `forward` takes in plain torch beside its result, at most."""
        tile = min(self.tile_rows, self.out_features) * self.in_features
        ordered = 0 if self.order is None else num_rows * self.in_features
        return (4 * tile + ordered) * torch.float32.itemsize

    def kernel_bytes(self, num_rows: int) -> int:
        """What a kernel takes: the rows, twice if they have an order, and each thread's block of W."""
        rows = num_rows * (self.in_features + 2 * VECTOR) * (1 if self.order is None else 2)
        blocks = torch.get_num_threads() * max(2**18, 32 * self.in_features)  # see amx.h
        return (rows + blocks) * torch.float32.itemsize

    def decoded(self, rows: slice | Tensor) -> Tensor:
        """These rows of W, their columns as the codes have them: [num_rows, in_features], float32."""
        scales = self.scales[rows].float().unsqueeze(2)  # [num_rows, num_groups, 1]
        values = self.values(rows).unflatten(1, (scales.shape[1], -1))
        if self.zeros is not None:
            values = values - self.zeros[rows].float().unsqueeze(2)
        weight: Tensor = (values * scales).flatten(1)
        return weight[:, : self.in_features]

    def values(self, rows: slice | Tensor) -> Tensor:
        """What these rows' codes stand for: [num_rows, num_groups * group_size], float32."""
        raise NotImplementedError
