"""Four bits a weight, two in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.library import Kernels
from model.quantization.int8 import Int8RowsLinear, fill_by_rows, steps_of_rows
from model.quantization.linear import QuantizedLinear

GROUP_SIZE = 32
MAX_STEP = 16
_LAST_CODE = 15


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


class Int4RowsLinear(Int8RowsLinear):
    """W4A8: of the integers that `Int8RowsLinear` has for a row, a group of 32 inputs has 16 at equal steps.

    They are `step * (code - zero)`, the step from 1 to 16, the zero a code. A group's byte in `grids` has the
    step less 1 in its upper half, the zero in its lower. Products are of integers, and as exact.
    """

    CODES_PER_BYTE = 2

    def integers(self, rows: slice | Tensor) -> Tensor:
        """As above."""
        assert self.grids is not None
        grids = self.grids[rows].unsqueeze(2).int()
        codes = unpack(self.codes[rows]).unflatten(1, (-1, GROUP_SIZE)).int()
        integers: Tensor = (codes - (grids & 15)) * ((grids >> 4) + 1)
        return integers.flatten(1)

    def natively(self, x: Tensor, kernels: Kernels) -> Tensor:
        """As `forward`, by a kernel."""
        assert self.grids is not None
        return kernels.linear_int4(x, self.codes, self.grids, self.scales, self.bias)

    def temporary_bytes(self, num_rows: int) -> int:
        """And what a tile's integers come from: codes, differences and products in 32 bits."""
        tile = min(self.tile_rows, self.out_features) * self.in_features
        return super().temporary_bytes(num_rows) + 4 * tile * torch.int32.itemsize


def quantize(weight: Tensor, kernels: Kernels | None = None) -> dict[str, Tensor]:
    """The nearest of each group's 16 integers; 0 is one of them. weight: [out, in] -> tensors.

    A row with NaN or infinity gets such a scale. With kernels it is the same, sooner.
    """
    num_rows, num_groups = len(weight), -(-weight.shape[1] // GROUP_SIZE)
    packed = {
        "codes": weight.new_empty(num_rows, num_groups * GROUP_SIZE // 2, dtype=torch.uint8),
        "grids": weight.new_empty(num_rows, num_groups, dtype=torch.uint8),
        "scales": weight.new_empty(num_rows, 1, dtype=torch.float32),
    }
    if kernels is not None and kernels.can_read(weight):
        kernels.quantize_int4(weight, **packed)
    else:
        fill_by_rows(packed, _quantize, weight)
    return packed


def _quantize(weight: Tensor) -> dict[str, Tensor]:
    scales = steps_of_rows(weight)
    filled = torch.nn.functional.pad(weight.float() / scales, (0, -weight.shape[1] % GROUP_SIZE))
    groups = filled.unflatten(1, (-1, GROUP_SIZE))  # [rows, num_groups, GROUP_SIZE], from -127 to 127
    low = groups.amin(2, keepdim=True).clamp_max(0.0)
    high = groups.amax(2, keepdim=True).clamp_min(0.0)
    exact = (high - low) / _LAST_CODE
    best: tuple[Tensor, ...] | None = None
    for steps in (exact.floor(), exact.ceil(), exact.ceil() + 1.0):  # the finest may lack an end
        steps = steps.clamp(1, MAX_STEP)
        for round_zero in (torch.floor, torch.ceil):
            zeros = round_zero(-low / steps).clamp_max(_LAST_CODE)
            tried = _on_grid(groups, steps, zeros)
            if best is not None:
                is_better = tried[0] < best[0]
                tried = tuple(torch.where(is_better, *pair) for pair in zip(tried, best, strict=True))
            best = tried
    assert best is not None
    _, codes, grids = best
    return {"codes": pack(codes.flatten(1)), "grids": grids.squeeze(2).to(torch.uint8), "scales": scales}


def _on_grid(groups: Tensor, steps: Tensor, zeros: Tensor) -> tuple[Tensor, ...]:
    """By how much each group is off, squared and summed; the codes; the grids' bytes."""
    ends = torch.floor(127.0 / steps)  # no integer is past them
    codes = (torch.round(groups * (1.0 / steps)).clamp(-ends, ends) + zeros).clamp_(0, _LAST_CODE)
    errors = (codes - zeros).mul_(steps).sub_(groups).square_()
    while (half := errors.shape[2] // 2) > 0:  # in one order, which the kernel has, too
        errors = errors[..., :half] + errors[..., half:]
    return errors, codes, 16 * (steps - 1) + zeros
