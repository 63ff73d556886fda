"""bitsandbytes: int8 with a scale for each output, and 4 bits that stand for the 16 numbers of a table.

`weight` int8 [out, in] with `SCB` [out], the largest of each row: `w = weight * SCB / 127` (Dettmers et al.
2022). Or `weight` uint8 [out * in / 2, 1], the earlier code in the upper half,
with `weight.quant_map` [16] and
`weight.absmax`, a scale for each block of 64 in a row, itself quantized if `weight.nested_absmax` is there
(Dettmers et al. 2023). The rows of x stay in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from model.quantization._scheme import FLOATS, Dtypes, NumInputs, Packed, Scheme, expect, read_fields
from model.quantization.int4 import Int4Linear
from model.quantization.int8 import Int8Linear

_HARMLESS = """
    _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type
    bnb_4bit_use_double_quant llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight llm_int8_skip_modules
    llm_int8_threshold quant_method
"""
_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


class FIELDS(msgspec.Struct, frozen=True, kw_only=True):
    """quantization_config. Where both are false, nothing is quantized."""

    load_in_8bit: bool = False
    load_in_4bit: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is written beside a weight of 4 bits, as JSON."""

    shape: tuple[int, int]
    blocksize: int
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Raises `ValueError` naming what is not supported."""
    c = read_fields(config, FIELDS, _HARMLESS)
    if c.load_in_8bit == c.load_in_4bit:
        raise ValueError("one of load_in_8bit and load_in_4bit must be true")
    if config.get("bnb_4bit_quant_storage") not in (None, "uint8"):
        raise ValueError(f"bnb_4bit_quant_storage is {config['bnb_4bit_quant_storage']}, must be uint8")
    if c.load_in_8bit:
        return Scheme("bitsandbytes", Int8Linear, ("SCB", "weight", "weight_format"), _decode_int8)
    leaves = (
        "weight.absmax",
        "weight",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
    )
    return Scheme("bitsandbytes", Int4Linear, (*leaves, *_STATES), _decode_4bit)


def _decode_int8(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    weight, scales = expect(parts, weight=torch.int8, SCB=FLOATS)
    layout = parts.get("weight_format")
    if layout is not None and not layout.is_meta and layout.any():
        raise ValueError(f"belongs to a layer of the layout {layout.tolist()}, must be 0, by rows")
    if weight.dim() != 2 or scales.shape != weight.shape[:1]:
        raise ValueError(f"belongs to a layer of {list(weight.shape)} with scales of {list(scales.shape)}")
    return {"codes": weight, "scales": scales.float().unsqueeze(1) / 127.0}


def _decode_4bit(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    dtypes: dict[str, Dtypes] = {
        "weight": torch.uint8,
        "weight.quant_map": torch.float32,
        "weight.absmax": (torch.float32, torch.uint8),
    }
    weight, table, absmax = expect(parts, **dtypes)
    in_features = num_inputs(2 * weight.numel())
    out_features = 2 * weight.numel() // in_features
    num_groups, rest_of_blocks = divmod(absmax.numel(), out_features)
    if rest_of_blocks or not num_groups or in_features % num_groups or in_features % 2:
        raise ValueError(f"has blocks that are no parts of rows of {in_features}: that is not supported")
    _check_state(parts, (out_features, in_features), in_features // num_groups)
    if absmax.dtype == torch.uint8:
        absmax = _decode_nested(parts, absmax)
    codes = weight.flatten().view(out_features, -1)
    codes = (codes << 4) | (codes >> 4)  # ours has the earlier in the lower half
    return {"codes": codes, "scales": absmax.view(out_features, num_groups), "table": table}


def _state(parts: Mapping[str, Tensor]) -> State | None:
    """None before there is memory."""
    held = next((parts[name] for name in _STATES if name in parts), None)
    if held is None:
        raise ValueError("belongs to a layer without 'weight.quant_state.bitsandbytes__nf4'")
    return None if held.is_meta else msgspec.json.decode(bytes(held.tolist()), type=State)


def _check_state(parts: Mapping[str, Tensor], shape: tuple[int, int], block_size: int) -> None:
    state = _state(parts)
    if state is not None and (state.shape, state.blocksize) != (shape, block_size):
        raise ValueError(
            f"belongs to a layer of {list(state.shape)} in blocks of {state.blocksize}, expected "
            f"{list(shape)} in blocks of {block_size}"
        )


def _decode_nested(parts: Mapping[str, Tensor], absmax: Tensor) -> Tensor:
    table, scales = expect(
        parts, **{"weight.nested_quant_map": torch.float32, "weight.nested_absmax": torch.float32}
    )
    state = _state(parts)
    if state is None:
        return torch.empty(absmax.shape, device=absmax.device)
    size = state.nested_blocksize
    if size < 1 or len(scales) != -(-len(absmax) // size) or len(table) != 256:
        raise ValueError(f"belongs to a layer whose scales are in {len(scales)} blocks of {size}")
    return table[absmax.int()] * scales.repeat_interleave(size)[: len(absmax)] + state.nested_offset
