"""GPTQ (Frantar et al. 2022): 2, 3, 4 or 8 bits in words of 32, packed along the inputs.

`qweight` [in / 32 * bits, out], `qzeros` [groups, out / 32 * bits], `scales` [groups, out], `g_idx` [in]:
each input's group. Codes of 2 and 3 bits are held in 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

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
from model.quantization.int8 import Int8Linear

# How the weights were found, and which kernel was thought of.
_HARMLESS = """
    backend batch_size block_name_to_quantize block_size cache_block_outputs damp_percent damp_auto_increment
    dataset exllama_config format_bits hyb_act is_marlin_format max_input_length meta model_file_base_name
    model_name_or_path model_seqlen modules_in_block_to_quantize module_name_preceding_first_block mse
    pad_token_id quant_method static_groups tokenizer true_sequential use_cuda_fp16 use_exllama
"""


class FIELDS(msgspec.Struct, frozen=True, kw_only=True):
    """quantization_config."""

    bits: Literal[2, 3, 4, 8]
    group_size: int = -1
    desc_act: bool = False
    sym: bool = True  # the zero points are stored in any case
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    lm_head: bool = False  # its tensors say it, too
    pack_dtype: Literal["int32"] = "int32"


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Raises `ValueError` naming the field that is not supported."""
    c = read_fields(config, FIELDS, _HARMLESS)
    return Scheme(
        name="gptq",
        module=Int8Linear if c.bits == 8 else Int4Linear,
        leaves=("qweight", "qzeros", "scales", "g_idx"),
        decode=partial(_decode, c),
    )


def _decode(c: FIELDS, parts: Mapping[str, Tensor], num_inputs: NumInputs) -> Packed:
    words, zero_words, scales = expect(parts, qweight=torch.int32, qzeros=torch.int32, scales=FLOATS)
    codes = unpack_int32(words, c.bits).t()  # [out, in]
    zeros = unpack_int32(zero_words.t(), c.bits)  # [out, groups]
    if c.checkpoint_format == "gptq":  # which stores them less one
        zeros = (zeros + 1) & (2**c.bits - 1)
    if scales.t().shape != zeros.shape or len(zeros) != len(codes):
        raise ValueError(f"belongs to a layer of {list(codes.shape)} with scales of {list(scales.shape)}")
    in_features = codes.shape[1]
    packed = {"scales": scales.t(), "zeros": zeros}
    if "g_idx" in parts and len(scales) > 1:
        order = order_of(parts["g_idx"], in_features, len(scales))
        if c.desc_act:
            codes, packed["order"] = codes.index_select(1, order), order
        elif not order.is_meta and not torch.equal(order, torch.arange(in_features)):
            raise ValueError("belongs to a layer whose 'g_idx' is not in order, but desc_act is false")
    elif c.desc_act and len(scales) > 1:
        raise ValueError("belongs to a layer without 'g_idx', but desc_act is true")
    if c.bits == 8:
        return {**packed, "codes": signed(codes, 128), "zeros": signed(zeros, 128)}
    return {**packed, "codes": pack(codes)}
