"""The formats against the libraries that write them, where there are these: `pip install '.[formats]'`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.quantization import SCHEMES, QuantizedLinear
from tests.model.quantization.test_checkpoints import BNB, W8A8, compressed, integers


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def layer(config: dict[str, Any], parts: dict[str, Tensor], num_inputs: int) -> QuantizedLinear:
    scheme = SCHEMES[config["quant_method"]](config)
    assert set(parts) <= set(scheme.leaves)
    assert scheme.module is not None
    return scheme.module(num_inputs, scheme.decode(parts, lambda num_weights: num_inputs), has_bias=False)


@pytest.mark.parametrize("is_nested", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_4_bits(kind: str, is_nested: bool) -> None:
    library = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = drawn(96, 128)
    codes, state = library.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=is_nested)
    parts = {f"weight.{leaf}": tensor for leaf, tensor in state.as_dict(packed=True).items()}
    held = layer(BNB | {"load_in_4bit": True}, parts | {"weight": codes}, 128)
    torch.testing.assert_close(held.decoded(slice(None)), library.dequantize_4bit(codes, state))


def test_bitsandbytes_in_8_bits() -> None:
    library = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    codes, scales, _ = library.int8_vectorwise_quant(drawn(96, 128))
    held = layer(BNB | {"load_in_8bit": True}, {"weight": codes, "SCB": scales}, 128)
    torch.testing.assert_close(held.decoded(slice(None)), library.int8_vectorwise_dequant(codes, scales))


@pytest.mark.parametrize("is_symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_packed(bits: int, is_symmetric: bool) -> None:
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    arguments = integers(bits, symmetric=is_symmetric)
    args = library.quantization.QuantizationArgs(**arguments)
    weight = drawn(96, 128)
    groups = weight.unflatten(1, (4, 32))
    qparams = library.quantization.utils.calculate_qparams
    scales, zeros = qparams(groups.amin(2), groups.amax(2), args)
    codes = library.quantization.quantize(weight, scales, zeros, args, dtype=torch.int8)
    parts = {
        "weight_packed": helpers.pack_to_int32(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not is_symmetric:
        parts["weight_zero_point"] = helpers.pack_to_int32(zeros.to(torch.int8), bits, packed_dim=0)
    held = layer(compressed("pack-quantized", arguments), parts, 128)
    expected = library.quantization.dequantize(codes, scales, zeros, args)
    torch.testing.assert_close(held.decoded(slice(None)), expected, rtol=1e-6, atol=1e-6)


def test_compressed_tensors_w8a8() -> None:
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    utils = library.quantization.utils
    args = library.quantization.QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    weight = torch.randint(-127, 128, (96, 128), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    scales = drawn(96, 1).abs() / 100
    held = layer(W8A8, {"weight": weight, "weight_scale": scales}, 128)
    x = drawn(7, 128)
    row_scales, zeros = utils.compute_dynamic_scales_and_zp(x[None], args, torch.nn.Linear(1, 1))
    (rounded,) = library.quantization.fake_quantize(x[None], row_scales, zeros, args)
    expected = rounded.double() @ (weight.double() * scales.double()).t()
    torch.testing.assert_close(held(x).double(), expected, rtol=1e-5, atol=1e-5)
