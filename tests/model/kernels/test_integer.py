"""Native products with quantized weights: the plain path's bits, the decoded weight's, or near to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels.library import Kernels
from model.quantization import Quantize, QuantizedLinear, int4, int8
from model.quantization.int4 import GROUP_SIZE, Int4Linear, Int4RowsLinear, pack
from model.quantization.int8 import MAX_NATIVE_INPUTS, Int8Linear, Int8RowsLinear
from tests.model.kernels.paths import DTYPES, EACH, same_bits
from tests.model.kernels.test_linear import random

ANY_EXAMPLE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_layer(inputs: int, outputs: int, dtype: torch.dtype, has_bias: bool) -> Int8RowsLinear:
    packed = int8.quantize(random(outputs, inputs, dtype=torch.float32, seed=1))
    packed["codes"][-1, -1] = -128  # which no checkpoint of ours holds, but others may
    layer = Int8RowsLinear(inputs, packed, has_bias)
    if layer.bias is not None:
        layer.bias.data = random(outputs, dtype=dtype, seed=2)
    return layer.requires_grad_(False)


def integers(low: int, high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def packed_layer(
    bits: int, outputs: int, group_size: int, num_groups: int, last: int, scale_dtype: torch.dtype, kind: str
) -> QuantizedLinear:
    """Of any integers; the last group lacks its last inputs. kind: what there is beside codes and scales."""
    num_columns = num_groups * group_size
    scales = random(outputs, num_groups, dtype=scale_dtype, seed=11)
    packed = {"scales": scales.abs() if kind == "zeros" else scales}
    if bits == 8:
        packed["codes"] = integers(-128, 128, outputs, num_columns, seed=12).to(torch.int8)
        zeros = integers(-128, 128, outputs, num_groups, seed=13).to(torch.int8)
    else:
        packed["codes"] = integers(0, 256, outputs, num_columns // 2, seed=12).to(torch.uint8)
        zeros = integers(0, 16, outputs, num_groups, seed=13).to(torch.uint8)
    if kind == "zeros":
        packed["zeros"] = zeros
    if kind == "table" and bits == 4:
        packed["table"] = random(16, dtype=torch.float32, seed=14)
    if kind == "order":
        packed["order"] = torch.randperm(num_columns - last, generator=torch.Generator().manual_seed(15))
    module = Int8Linear if bits == 8 else Int4Linear
    return module(num_columns - last, packed, has_bias=kind != "table").requires_grad_(False)


def natively(layer: QuantizedLinear, kernels: Kernels, x: Tensor) -> Tensor:
    layer.kernels = kernels
    y: Tensor = layer(x)
    layer.kernels = None
    return y


@EACH
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 40),
    st.integers(1, 300),
    st.integers(1, 150),
    st.booleans(),
    st.integers(-38, 36),
    st.integers(1, 3),
)
@ANY_EXAMPLE
def test_int8_has_the_bits_of_the_plain_path(
    kernels: Kernels,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    outputs: int,
    has_bias: bool,
    power: int,
    threads: int,
) -> None:
    layer = rows_layer(inputs, outputs, dtype, has_bias)
    x = random(rows, inputs, dtype=dtype, seed=3) * 10.0**power
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert same_bits(natively(layer, kernels, x), layer(x))
    finally:
        torch.set_num_threads(before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_has_them_for_any_number_of_rows(kernels: Kernels, dtype: torch.dtype) -> None:
    layer = rows_layer(600, 700, dtype, has_bias=True)
    x = random(512, 600, dtype=dtype, seed=4)
    expected = layer(x)
    for rows in (1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 511, 512):
        assert same_bits(natively(layer, kernels, x[-rows:]), expected[-rows:])


@EACH
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_integers_do_not_overflow(kernels: Kernels, sign: float) -> None:
    """All at their range's end, in as many inputs as a kernel takes; for more there is the plain path."""
    for inputs in (MAX_NATIVE_INPUTS, MAX_NATIVE_INPUTS + 1):
        codes = torch.full((2, inputs), -128, dtype=torch.int8)
        codes[1] = 127
        layer = Int8RowsLinear(inputs, {"codes": codes, "scales": torch.ones(2, 1)}, has_bias=False)
        x = torch.full((1, inputs), sign * 3.0)
        assert same_bits(natively(layer, kernels, x), layer(x))


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_stay_in_their_row(kernels: Kernels, dtype: torch.dtype) -> None:
    layer = rows_layer(100, 30, dtype, has_bias=True)
    x = random(8, 100, dtype=dtype, seed=5)
    x[1, 3], x[3, 99], x[4, 0] = torch.nan, torch.inf, -torch.inf
    x[5], x[6], x[7] = 0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 4
    x[7, 1] = -0.5  # of a step, and halves between two integers
    x[2] = torch.arange(100) / 2.0
    x[2, 0] = 127.5
    y, expected = natively(layer, kernels, x), layer(x)
    for row in (1, 3, 4):
        assert y[row].isnan().all()
        assert expected[row].isnan().all()
    for row in (0, 2, 5, 6, 7):
        assert same_bits(y[row], expected[row])


def int4_layer(inputs: int, outputs: int, dtype: torch.dtype, has_bias: bool) -> Int4RowsLinear:
    """Of any codes and grids whose integers fit int8; codes past the last input stand for nothing."""
    num_groups = -(-inputs // GROUP_SIZE)
    grids = integers(0, 256, outputs, num_groups, seed=21)
    steps, zeros = grids // 16 + 1, grids % 16
    codes = integers(0, 16, outputs, num_groups, GROUP_SIZE, seed=22)
    ends = 127 // steps.unsqueeze(2)
    codes = codes.clamp(zeros.unsqueeze(2) - ends, zeros.unsqueeze(2) + ends).flatten(1)
    packed = {"codes": pack(codes), "grids": grids.to(torch.uint8)}
    packed["scales"] = random(outputs, 1, dtype=torch.float32, seed=23)
    layer = Int4RowsLinear(inputs, packed, has_bias)
    assert layer.values(slice(None)).abs().max() <= 127
    if layer.bias is not None:
        layer.bias.data = random(outputs, dtype=dtype, seed=24)
    return layer.requires_grad_(False)


@EACH
@given(
    st.sampled_from([int8.quantize, int4.quantize]),
    st.sampled_from(DTYPES),
    st.integers(1, 20),
    st.one_of(st.integers(1, 300), st.integers(1, 1200)),
    st.sampled_from([0.0, 1.0, 3.0, 100.0]),
    st.integers(-30, 30),
)
@ANY_EXAMPLE
def test_weights_are_rounded_as_in_plain_torch(
    kernels: Kernels,
    quantize: Quantize,
    dtype: torch.dtype,
    outputs: int,
    inputs: int,
    mean: float,
    power: int,
) -> None:
    """Bit for bit, wherever their middle lies; a row of zeros, and one of few levels with ties, too."""
    weight = (random(outputs, inputs, dtype=torch.float32, seed=26) ** 3 + mean) * 10.0**power
    weight[0] = 0.0
    weight[0, -1] = 2.0**-149  # the smallest of all: the row's step is none
    weight[-1] = integers(-3, 4, inputs, seed=27)
    weight = weight.to(dtype)
    expected, found = quantize(weight, None), quantize(weight, kernels)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@EACH
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 40),
    st.one_of(st.integers(1, 300), st.integers(1, 1200)),
    st.integers(1, 150),
    st.booleans(),
    st.integers(-30, 30),
    st.integers(1, 3),
)
@ANY_EXAMPLE
def test_int4_has_the_bits_of_its_integers_in_int8(
    kernels: Kernels,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    outputs: int,
    has_bias: bool,
    power: int,
    threads: int,
) -> None:
    """On every path and in plain torch, alone and among others, on any number of threads."""
    layer = int4_layer(inputs, outputs, dtype, has_bias)
    codes = layer.values(slice(None))[:, :inputs].to(torch.int8).contiguous()
    x = random(rows, inputs, dtype=dtype, seed=25) * 10.0**power
    expected = kernels.linear_int8(x, codes, layer.scales, layer.bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert same_bits(natively(layer, kernels, x), expected)
        assert same_bits(layer(x), expected)
        for row in range(0, rows, 3):
            assert same_bits(natively(layer, kernels, x[row : row + 1]), expected[row : row + 1])
    finally:
        torch.set_num_threads(before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [608, 1024])
def test_int4_rows_have_their_bits_in_any_number(kernels: Kernels, dtype: torch.dtype, inputs: int) -> None:
    """More outputs than one block, and more than one thread."""
    layer = int4_layer(inputs, 700, dtype, has_bias=True)
    x = random(512, inputs, dtype=dtype, seed=24)
    whole = natively(layer, kernels, x)
    assert same_bits(whole, layer(x))
    for rows in (*range(1, 20), *range(20, 513, 17), 31, 32, 33, 511):
        assert same_bits(natively(layer, kernels, x[-rows:]), whole[-rows:])


@EACH
@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize(("step", "zero", "code"), [(8, 0, 15), (16, 8, 0), (16, 8, 15), (8, 15, 0)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_integers_and_rows_do_not_overflow(
    kernels: Kernels, rows: int, step: int, zero: int, code: int, sign: float
) -> None:
    inputs = MAX_NATIVE_INPUTS
    packed = {
        "codes": torch.full((3, inputs // 2), code * 17, dtype=torch.uint8),
        "grids": torch.full((3, inputs // GROUP_SIZE), 16 * (step - 1) + zero, dtype=torch.uint8),
        "scales": torch.full((3, 1), 2.0),
    }
    layer = Int4RowsLinear(inputs, packed, has_bias=False)
    x = torch.full((rows, inputs), sign * 127.5)  # a step of 1, to 127 or to -128
    expected = torch.full((rows, 3), 2.0 * inputs * step * (code - zero) * (127 if sign > 0 else -128))
    assert torch.equal(layer(x), expected)
    assert torch.equal(natively(layer, kernels, x), expected)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_extremes_stay_in_their_row(kernels: Kernels, dtype: torch.dtype) -> None:
    layer = int4_layer(100, 30, dtype, has_bias=True)
    x = random(8, 100, dtype=dtype, seed=25)
    x[1, 3], x[3, 99], x[4, 0] = torch.nan, torch.inf, -torch.inf
    x[5], x[7] = 0.0, torch.finfo(dtype).tiny / 4
    x[6] *= torch.finfo(dtype).max / 1e4
    y, expected = natively(layer, kernels, x), layer(x)
    for row in (1, 3, 4):
        assert y[row].isnan().all()
        assert expected[row].isnan().all()
    for row in (0, 2, 5, 6, 7):
        assert same_bits(y[row], expected[row])
        assert same_bits(natively(layer, kernels, x[row].unsqueeze(0))[0], y[row])


@EACH
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([4, 8]),
    st.sampled_from(["plain", "zeros", "table", "order"]),
    st.integers(0, 40),
    st.integers(1, 150),
    st.tuples(st.integers(1, 70), st.integers(1, 5)),
    st.integers(0, 139),
    st.integers(1, 3),
)
@ANY_EXAMPLE
def test_packed_weights_multiply_as_decoded_ones(
    kernels: Kernels,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    bits: int,
    kind: str,
    rows: int,
    outputs: int,
    groups: tuple[int, int],
    last: int,
    threads: int,
) -> None:
    """Bit for bit, in groups of any size and number."""
    half_size, num_groups = groups
    layer = packed_layer(bits, outputs, 2 * half_size, num_groups, last % (2 * half_size), scale_dtype, kind)
    if layer.bias is not None:
        layer.bias.data = random(outputs, dtype=dtype, seed=16)
    x = random(rows, layer.in_features, dtype=dtype, seed=17)
    ordered = x if layer.order is None else x[:, layer.order]
    weight = layer.decoded(slice(None)).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert same_bits(
            natively(layer, kernels, x), kernels.linear(ordered, weight.contiguous(), layer.bias)
        )
    finally:
        torch.set_num_threads(before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_rows_have_their_bits_in_any_number(kernels: Kernels, dtype: torch.dtype, bits: int) -> None:
    """More rows and outputs than one block of either, and more than one thread."""
    layer = packed_layer(bits, 700, 128, 5, 0, torch.float16, "zeros")
    assert layer.bias is not None
    layer.bias.data = random(700, dtype=dtype, seed=18)
    x = random(512, 640, dtype=dtype, seed=19)
    whole = natively(layer, kernels, x)
    for rows in (1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 511):
        assert same_bits(natively(layer, kernels, x[-rows:]), whole[-rows:])


@EACH
def test_scales_of_every_float16_are_read_as_torch_reads_them(kernels: Kernels) -> None:
    """Infinities and denormals among them; NaN comes out as NaN."""
    scales = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    packed = {"codes": torch.ones(2**16, 1, dtype=torch.int8), "scales": scales.unsqueeze(1)}
    layer = Int8Linear(1, packed, has_bias=False)
    y = natively(layer, kernels, torch.ones(1, 1))[0]
    torch.testing.assert_close(y, scales.float(), rtol=0.0, atol=0.0, equal_nan=True)
