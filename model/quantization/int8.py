"""Eight bits a weight: symmetric, with one scale for each output when it is quantized here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.kernels.library import Kernels
from model.quantization.linear import QuantizedLinear

MAX_NATIVE_INPUTS = 2**16  # of integers' sums in 32 bits


class Int8Linear(QuantizedLinear):
    """Codes are signed integers."""

    CODES_PER_BYTE = 1

    def values(self, rows: slice | Tensor) -> Tensor:
        """The integers, as numbers."""
        return self.integers(rows).float()

    def integers(self, rows: slice | Tensor) -> Tensor:
        """What these rows' codes stand for, in any dtype of integers."""
        return self.codes[rows]


def round_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of 255 steps, over the last dimension, and the steps: [..., size] -> [..., size], [..., 1].

    Both are float32. A row with NaN or infinity gets such a step.
    """
    # 255 steps over [-max, max], as compressed-tensors has it; -128 is then the one that nothing reaches.
    scales = x.float().abs().amax(-1, keepdim=True) / 127.5
    scales = scales.clamp_min(torch.finfo(torch.float32).tiny)  # a smaller one would not be exact
    codes = torch.round(x.float() / scales).clamp_(-128, 127)
    return codes, scales


class Int8RowsLinear(Int8Linear):
    """W8A8: each row of x is rounded to int8, too, by its own largest element; one group, no zeros.

    `y = sx * sw * (integers' product) + b`. The product of integers is exact: any kernel has its bits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        if self.kernels is not None and self.in_features <= MAX_NATIVE_INPUTS:
            return self.natively(x, self.kernels)
        rows, scales = round_to_int8(x)
        rows = rows.double()
        out = x.new_empty(x.shape[0], self.out_features)
        for start in range(0, self.out_features, self.tile_rows):
            tile = slice(start, start + self.tile_rows)
            # Below 2^53: exact in any order. Floats may sum up to -0, which integers do not have.
            integers = self.integers(tile)[:, : self.in_features]
            sums = (rows @ integers.double().t()).add_(0.0)
            out[:, tile] = sums.float() * scales * self.scales[tile].float().t()
        return out if self.bias is None else out.add_(self.bias)

    def natively(self, x: Tensor, kernels: Kernels) -> Tensor:
        """The same, by a kernel."""
        return kernels.linear_int8(x, self.codes, self.scales.float(), self.bias)

    def temporary_bytes(self, num_rows: int) -> int:
        """The rows and a tile in float64, and the rows in float32."""
        tile = min(self.tile_rows, self.out_features) * self.in_features
        return (2 * num_rows * self.in_features + tile + num_rows * self.tile_rows) * torch.float64.itemsize


def fill_by_rows(
    packed: dict[str, Tensor], quantize: Callable[[Tensor], dict[str, Tensor]], weight: Tensor
) -> None:
    """What `quantize` makes of the weight, some rows at a time: little memory for the quotients.

    Without memory there is nothing to fill: torch takes a fraction of a millisecond for each operation on
    such tensors, and a checkpoint's are asked for their shapes twice.
    """
    if weight.is_meta:
        return
    for start in range(0, len(weight), 256):
        rows = slice(start, start + 256)
        for name, part in quantize(weight[rows]).items():
            packed[name][rows] = part


def quantize(weight: Tensor, kernels: Kernels | None = None) -> dict[str, Tensor]:
    """The nearest of 255 steps between -max and max of each row. weight: [out, in] -> codes and scales.

    A row with NaN or infinity gets such a scale. With kernels it is the same, sooner.
    """
    packed = {
        "codes": weight.new_empty(weight.shape, dtype=torch.int8),
        "scales": weight.new_empty(len(weight), 1, dtype=torch.float32),
    }
    if kernels is not None and kernels.can_read(weight):
        kernels.quantize_int8(weight, **packed)
    else:
        fill_by_rows(packed, _quantize, weight)
    return packed


def _quantize(weight: Tensor) -> dict[str, Tensor]:
    scales = steps_of_rows(weight)
    codes = torch.round(weight.float() / scales).clamp_(-127, 127)  # a scale of few bits may be too small
    return {"codes": codes.to(torch.int8), "scales": scales}


def steps_of_rows(weight: Tensor) -> Tensor:
    """By which each row lies between -127 and 127: [rows, in] -> [rows, 1], float32; 1 for a row of zeros."""
    scales = weight.abs().amax(1, keepdim=True).float() / 127.0
    return torch.where(scales == 0.0, 1.0, scales)
