"""Four bits a weight, two in a byte: a scale and a zero point for each group of inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from model.quantization.int8 import fill_by_rows, round_to_int8
from model.quantization.linear import QuantizedLinear

GROUP_SIZE = 32
_STEPS = 15


def pack(codes: Tensor) -> Tensor:
    """[..., 2n] integers from 0 to 15 -> [..., n] bytes, the earlier in the lower half."""
    return codes[..., 0::2].to(torch.uint8) | (codes[..., 1::2].to(torch.uint8) << 4)


def unpack(packed: Tensor) -> Tensor:
    """The reverse of `pack`: [..., n] -> [..., 2n], uint8."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


class Int4Linear(QuantizedLinear):
    """Codes are integers from 0 to 15, or numbers in a table."""

    CODES_PER_BYTE = 2

    def values(self, rows: slice | Tensor) -> Tensor:
        """The integers, or what the table has for them."""
        codes = unpack(self.codes[rows])
        return codes.float() if self.table is None else self.table[codes.int()]


class Int4RowsLinear(Int4Linear):
    """W4A8: each row of x is rounded to int8, by its own largest element; groups of 32 inputs, with zeros.

    `y = sx * sum over groups of s * (integers' product) + b`. A group's product of integers is exact, at most
    2^16, and so is that with its scale, of 8 bits: what rounds is the sum over the groups, then `sx` and `b`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        assert self.zeros is not None
        if self.kernels is not None:
            return self.kernels.linear_int4(x, self.codes, self.scales, self.zeros, self.bias)
        rows, row_scales = round_to_int8(x)
        out = rows.new_zeros(x.shape[0], self.out_features)
        for group, some in enumerate(rows.split(GROUP_SIZE, 1)):  # [num_tokens, GROUP_SIZE] or, at last, less
            columns = slice(group * GROUP_SIZE // 2, (group + 1) * GROUP_SIZE // 2)
            integers = unpack(self.codes[:, columns]).float() - self.zeros[:, group, None].float()
            out.addcmul_(some @ integers[:, : some.shape[1]].t(), self.scales[:, group].float())
        out *= row_scales
        return (out if self.bias is None else out.add_(self.bias)).to(x.dtype)

    def temporary_bytes(self, num_rows: int) -> int:
        """The rows, in float32, thrice; the sums and a group's; and a group of the weight."""
        rows = num_rows * (3 * self.in_features + 3 * self.out_features)
        return (rows + 3 * self.out_features * GROUP_SIZE) * torch.float32.itemsize

    def kernel_bytes(self, num_rows: int) -> int:
        """The rows' integers, filled up to whole steps, and in float32 their sums, twice; their scales."""
        columns = self.in_features + 16 * GROUP_SIZE  # 16 groups are a step of the widest path; see int4.h
        num_rows += 16  # the second time filled up to whole tiles; see int4_tiles.h
        return num_rows * (2 * columns + (2 * columns // GROUP_SIZE + 1) * torch.float32.itemsize)


def quantize(weight: Tensor) -> dict[str, Tensor]:
    """The nearest of 16 steps from min to max of each group; 0 is one of them. weight: [out, in] -> tensors.

    A group with NaN or infinity gets such a scale.
    """
    num_rows, num_groups = len(weight), -(-weight.shape[1] // GROUP_SIZE)
    packed = {
        "codes": weight.new_empty(num_rows, num_groups * GROUP_SIZE // 2, dtype=torch.uint8),
        "scales": weight.new_empty(num_rows, num_groups, dtype=torch.bfloat16),
        "zeros": weight.new_empty(num_rows, num_groups, dtype=torch.uint8),
    }
    fill_by_rows(packed, _quantize, weight)
    return packed


def _quantize(weight: Tensor) -> dict[str, Tensor]:
    filled = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % GROUP_SIZE))
    groups = filled.unflatten(1, (-1, GROUP_SIZE))  # [rows, num_groups, GROUP_SIZE]
    low = groups.amin(2, keepdim=True).clamp_max(0.0)
    high = groups.amax(2, keepdim=True).clamp_min(0.0)
    # Rounded as they are stored, before the codes are chosen by them.
    scales = ((high - low) / _STEPS).to(torch.bfloat16)
    scales = torch.where(scales == 0.0, 1.0, scales)
    steps = scales.float()
    zeros = torch.round(-low / steps).clamp_(0, _STEPS)
    codes = (torch.round(groups / steps) + zeros).clamp_(0, _STEPS)
    return {
        "codes": pack(codes.flatten(1)),
        "scales": scales.squeeze(2),
        "zeros": zeros.squeeze(2).to(torch.uint8),
    }
