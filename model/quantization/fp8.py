"""FP8 (Micikevicius et al. 2022): e4m3, with a scale for the tensor, for each output or for each block.

Decoded at load, to the model's dtype, in which the rows of x stay, too, whatever `activation_scheme`
would round them to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from model.quantization._scheme import FLOATS, NumInputs, Packed, Scheme, expect, read_fields


class FIELDS(msgspec.Struct, frozen=True, kw_only=True):
    """quantization_config."""

    activation_scheme: Literal["dynamic", "static"] = "dynamic"
    fmt: Literal["e4m3"] = "e4m3"
    weight_block_size: tuple[int, int] | None = None


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Raises `ValueError` naming the field that is not supported."""
    c = read_fields(config, FIELDS, "quant_method ignored_layers modules_to_not_convert")
    if c.weight_block_size is None:
        return Scheme("fp8", None, ("weight_scale", "weight", "input_scale"), decode_whole)
    rows, columns = c.weight_block_size
    if rows < 1 or columns < 1:
        raise ValueError(f"weight_block_size is {[rows, columns]}, must be at least 1")

    def decode(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
        weight, scales = expect(parts, weight=torch.float8_e4m3fn, weight_scale_inv=FLOATS)
        expected = [-(-len(weight) // rows), -(-weight.shape[1] // columns)]
        if list(scales.shape) != expected:
            raise ValueError(f"belongs to a layer with scales of {list(scales.shape)}, expected {expected}")
        scales = scales.float().repeat_interleave(rows, 0)[: len(weight)]
        return {"weight": weight.float() * scales.repeat_interleave(columns, 1)[:, : weight.shape[1]]}

    return Scheme("fp8", None, ("weight_scale_inv", "weight"), decode)


def decode_whole(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    """One scale for the tensor, or one for each output."""
    weight, scale = expect(parts, weight=torch.float8_e4m3fn, weight_scale=FLOATS)
    if scale.numel() not in (1, len(weight)):
        raise ValueError(
            f"belongs to a layer with scales of {list(scale.shape)}, expected [{len(weight)}, 1]"
        )
    return {"weight": weight.float() * scale.float().reshape(-1, 1)}
