"""Four bits a weight, two in a byte: a scale and a zero point for each group of inputs."""

from __future__ import annotations

import torch
from torch import Tensor

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


def quantize(weight: Tensor) -> dict[str, Tensor]:
    """The nearest of 16 steps from min to max of each group; 0 is one of them. weight: [out, in] -> tensors.

    A group with NaN or infinity gets such a scale.
    """
    parts = [_quantize(rows) for rows in weight.split(256)]  # little memory for the quotients
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
