"""MXFP4 (OCP Microscaling Formats 1.0): 32 values of 4 bits, e2m1, with one power of two, as gpt-oss has it.

The experts of a layer are one tensor of blocks and one of scales. Decoded at load; each value is one of
bfloat16, unless its scale is at that format's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from model.quantization._scheme import NumInputs, Packed, Scheme, expect, read_fields

BLOCK_BYTES = 16  # of 32 values, the first of each two in the lower half of a byte
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class FIELDS(msgspec.Struct, frozen=True, kw_only=True):
    """quantization_config: nothing in it changes a result."""


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Raises `ValueError` naming the field that is not supported."""
    read_fields(config, FIELDS, "quant_method modules_to_not_convert")
    return Scheme("mxfp4", None, ("scales", "blocks"), decode, joint="_", weight="")


def decode(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    """[num_experts, out, num_groups, 16] and [num_experts, out, num_groups] -> [num_experts, in, out]."""
    blocks, scales = expect(parts, blocks=torch.uint8, scales=torch.uint8)
    if blocks.dim() != 4 or blocks.shape[3] != BLOCK_BYTES or scales.shape != blocks.shape[:3]:
        raise ValueError(
            f"belongs to a layer with blocks of {list(blocks.shape)} and scales of {list(scales.shape)}, "
            f"expected [experts, outputs, groups, {BLOCK_BYTES}] and the same without the last"
        )
    num_experts, num_outputs, num_groups, _ = blocks.shape
    weight = torch.empty(
        num_experts, num_outputs, num_groups * 2 * BLOCK_BYTES, dtype=torch.bfloat16, device=blocks.device
    )
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=blocks.device)
    code = torch.arange(256, device=blocks.device)
    pairs = torch.stack((values[code & 15], values[code >> 4]), 1)  # of each byte: [256, 2]
    powers = torch.exp2(code - 127.0)
    powers[255] = torch.nan
    for expert in range(num_experts):  # one at a time: its float32 is twice the weight
        twos = pairs.index_select(0, blocks[expert].flatten().int()).view(num_outputs, num_groups, -1)
        scale = powers.index_select(0, scales[expert].flatten().int()).view(num_outputs, num_groups, 1)
        weight[expert] = (twos * scale).flatten(1)
    return {"weight": weight.transpose(1, 2)}
