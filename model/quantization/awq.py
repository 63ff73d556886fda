"""AWQ (Lin et al. 2023), as its `gemm` kernels want it: 4 bits, eight in a word, packed along the outputs.

`qweight` [in, out / 8], `qzeros` [groups, out / 8], `scales` [groups, out]. The outputs of a word stand in
the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from model.quantization._scheme import FLOATS, NumInputs, Packed, Scheme, expect, read_fields, unpack_int32
from model.quantization.int4 import Int4Linear, pack

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where each output's bits stand in the word
_HARMLESS = (
    "backend do_fuse exllama_config fuse_max_seq_len modules_to_fuse modules_to_not_convert quant_method"
)


class FIELDS(msgspec.Struct, frozen=True, kw_only=True):
    """quantization_config."""

    bits: Literal[4] = 4
    group_size: int = 128
    version: Literal["gemm", "GEMM"] = "gemm"
    zero_point: Literal[True] = True


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Raises `ValueError` naming the field that is not supported."""
    if config.get("zero_point") is False:
        raise ValueError("zero_point is False, which is not supported")
    read_fields(config, FIELDS, _HARMLESS)
    return Scheme("awq", Int4Linear, ("qweight", "qzeros", "scales"), _decode)


def _decode(parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    words, zero_words, scales = expect(parts, qweight=torch.int32, qzeros=torch.int32, scales=FLOATS)
    codes, zeros = _unpack(words), _unpack(zero_words)
    if zeros.shape != scales.t().shape or len(zeros) != len(codes):
        raise ValueError(f"belongs to a layer of {list(codes.shape)} with scales of {list(scales.shape)}")
    return {"codes": pack(codes), "scales": scales.t(), "zeros": zeros}


def _unpack(words: Tensor) -> Tensor:
    """[n, out / 8] words -> [out, n]."""
    values = unpack_int32(words.t(), 4).unflatten(0, (-1, 8))  # [out / 8, 8, n]
    in_order: Tensor = values[:, _PLACES]
    return in_order.flatten(0, 1)
