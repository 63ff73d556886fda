"""compressed-tensors, the format of llm-compressor: W4A16 and W8A16 packed, W8A8, and FP8.

`pack-quantized`: `weight_packed` [out, in / 8 or 4] words of 32 bits, packed along the inputs, `weight_scale`
[out, groups], `weight_zero_point` packed along the outputs, `weight_g_idx`. `int-quantized`: `weight` int8.
`float-quantized`: `weight` e4m3. One group of layers, whose members their tensors show.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from model.quantization import fp8
from model.quantization._scheme import (
    FLOATS,
    NumInputs,
    Packed,
    Scheme,
    expect,
    order_of,
    read_fields,
    signed,
    unpack_int32,
)
from model.quantization.int4 import Int4Linear, pack
from model.quantization.int8 import Int8Linear, Int8RowsLinear

_OBSERVED = "observer observer_kwargs scale_dtype zp_dtype"  # how the scales were found, and were stored


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """How one side of a layer is quantized."""

    num_bits: Literal[4, 8] = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group", "token", "block"] = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    actorder: str | None = None
    block_structure: object = None


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of layers."""

    weights: dict[str, Any]
    input_activations: dict[str, Any] | None = None
    targets: list[str] = []
    format: str | None = None


class FIELDS(msgspec.Struct, frozen=True, kw_only=True):
    """quantization_config."""

    config_groups: dict[str, dict[str, Any]]
    format: str = "dense"
    quantization_status: Literal["compressed", "frozen"] = "compressed"


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Raises `ValueError` naming what is not supported."""
    c = read_fields(config, FIELDS, "global_compression_ratio ignore quant_method version")
    if len(c.config_groups) != 1:
        raise ValueError(f"config_groups has {len(c.config_groups)} groups, one is supported")
    (group,) = (read_fields(each, Group, "") for each in c.config_groups.values())
    weights = read_fields(group.weights, Arguments, _OBSERVED)
    rows = None
    if group.input_activations is not None:
        rows = read_fields(group.input_activations, Arguments, _OBSERVED)
    kind = group.format or c.format
    if kind == "pack-quantized" and rows is None and weights.type == "int":
        leaves = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
        module = Int4Linear if weights.num_bits == 4 else Int8Linear
        return Scheme("compressed-tensors", module, leaves, partial(_decode_packed, weights))
    leaves = ("weight_scale", "weight", "weight_zero_point", "input_scale", "input_zero_point")
    if kind in ("int-quantized", "naive-quantized") and _is_w8a8(weights, rows):
        return Scheme("compressed-tensors", Int8RowsLinear, leaves, _decode_int8)
    is_plain_float = weights.num_bits == 8 and weights.strategy in ("tensor", "channel")
    if kind in ("float-quantized", "naive-quantized") and weights.type == "float" and is_plain_float:
        return Scheme("compressed-tensors", None, leaves, fp8.decode_whole)
    raise ValueError(
        f"format {kind!r} with weights of {weights.num_bits} bits ({weights.type}, {weights.strategy}) and "
        f"activations {'quantized' if rows else 'not quantized'} is not supported"
    )


def _is_w8a8(weights: Arguments, rows: Arguments | None) -> bool:
    """Both int8 and symmetric; a scale for each output, and one for each row of x, found as it comes."""
    return (
        rows is not None
        and all(side.type == "int" and side.num_bits == 8 and side.symmetric for side in (weights, rows))
        and weights.strategy in ("tensor", "channel")
        and rows.strategy == "token"
        and rows.dynamic
    )


def _decode_int8(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    weight, scales = expect(parts, weight=torch.int8, weight_scale=FLOATS)
    if scales.numel() not in (1, len(weight)):
        raise ValueError(f"belongs to a layer of {list(weight.shape)} with scales of {list(scales.shape)}")
    return {"codes": weight, "scales": scales.reshape(-1, 1).expand(len(weight), 1)}


def _decode_packed(c: Arguments, parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    words, scales = expect(parts, weight_packed=torch.int32, weight_scale=FLOATS)
    codes = unpack_int32(words.t(), c.num_bits).t()  # [out, in], unsigned
    if scales.dim() != 2 or len(scales) not in (1, len(codes)):
        raise ValueError(f"belongs to a layer of {list(codes.shape)} with scales of {list(scales.shape)}")
    num_groups = scales.shape[1]
    scales = scales.expand(len(codes), num_groups)
    middle = 2 ** (c.num_bits - 1)
    zeros = torch.full(scales.shape, middle, dtype=torch.uint8, device=codes.device)
    if not c.symmetric:
        (zero_words,) = expect(parts, weight_zero_point=torch.int32)
        zeros = unpack_int32(zero_words, c.num_bits)[: len(codes)].expand(len(codes), num_groups)
    packed: Packed = {"scales": scales}
    if c.actorder not in (None, "static", "weight") and num_groups > 1:
        (groups,) = expect(parts, weight_g_idx=(torch.int32, torch.int64))
        packed["order"] = order_of(groups, codes.shape[1], num_groups)
        codes = codes.index_select(1, packed["order"])
    if c.num_bits == 8:
        return {**packed, "codes": signed(codes, middle), "zeros": signed(zeros, middle)}
    return {**packed, "codes": pack(codes), "zeros": zeros}
