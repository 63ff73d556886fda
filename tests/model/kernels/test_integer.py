"""Native products with quantized weights: the plain path's bits, the decoded weight's, or near to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels.library import Kernels
from model.quantization import QuantizedLinear, int4, int8
from model.quantization.int4 import GROUP_SIZE, Int4Linear, Int4RowsLinear
from model.quantization.int8 import MAX_NATIVE_INPUTS, Int8Linear, Int8RowsLinear, round_to_int8
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
    """Of weights that are not symmetric; codes past the last input are any, and stand for nothing."""
    weight = (
        random(outputs, inputs, dtype=torch.float32, seed=21)
        + 0.3 * torch.arange(outputs).unsqueeze(1) / outputs
    )
    packed = int4.quantize(weight)
    if inputs % GROUP_SIZE > 1:
        packed["codes"][:, -1] = 0xA5
    layer = Int4RowsLinear(inputs, packed, has_bias)
    if layer.bias is not None:
        layer.bias.data = random(outputs, dtype=dtype, seed=22)
    return layer.requires_grad_(False)


def assert_near_the_formula(layer: Int4RowsLinear, x: Tensor, y: Tensor) -> None:
    """Within the error of a sum over the groups in float32, of two roundings, and of one to the dtype."""
    rows, steps = (each.double() for each in round_to_int8(x))
    weight = layer.decoded(slice(None)).double()
    assert layer.zeros is not None
    offsets = layer.zeros.double() * layer.scales.double()
    offsets = offsets.repeat_interleave(GROUP_SIZE, 1)[:, : layer.in_features]
    bias = 0.0 if layer.bias is None else layer.bias.double()
    expected = steps * (rows @ weight.t()) + bias
    # Codes and zero points are added up by themselves.
    sizes = steps * (rows.abs() @ (weight.abs() + 2 * offsets).t()) + expected.abs()
    error = (layer.scales.shape[1] + 8) * 2.0**-24 * sizes + torch.finfo(y.dtype).eps * expected.abs()
    assert y.dtype == x.dtype
    assert ((y.double() - expected).abs() <= error + torch.finfo(torch.float32).tiny).all()


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
def test_int4_equals_the_formula(
    kernels: Kernels,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    outputs: int,
    has_bias: bool,
    power: int,
    threads: int,
) -> None:
    """Natively and in plain torch; and each row natively has its bits alone, on any number of threads."""
    layer = int4_layer(inputs, outputs, dtype, has_bias)
    x = random(rows, inputs, dtype=dtype, seed=23) * 10.0**power
    alone = [natively(layer, kernels, x[i : i + 1]) for i in range(rows)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = natively(layer, kernels, x)
        assert_near_the_formula(layer, x, y)
        assert_near_the_formula(layer, x, layer(x))
        assert same_bits(y, torch.cat([x.new_empty(0, outputs), *alone]))
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
    assert_near_the_formula(layer, x, whole)
    for rows in range(1, 513, 17):
        assert same_bits(natively(layer, kernels, x[-rows:]), whole[-rows:])
    for rows in (2, 3, 4, 5, 7, 15, 16, 31, 32, 33, 511):
        assert same_bits(natively(layer, kernels, x[-rows:]), whole[-rows:])


@EACH
@pytest.mark.parametrize("code", [0, 15])
@pytest.mark.parametrize("zero", [0, 15])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_codes_and_rows_do_not_overflow(
    kernels: Kernels, code: int, zero: int, sign: float
) -> None:
    inputs = 1000
    packed = {
        "codes": torch.full((3, 512), code * 17, dtype=torch.uint8),
        "scales": torch.full((3, 32), 2.0, dtype=torch.bfloat16),
        "zeros": torch.full((3, 32), zero, dtype=torch.uint8),
    }
    layer = Int4RowsLinear(inputs, packed, has_bias=False)
    x = torch.full((5, inputs), sign * 127.5)  # a step of 1, to 127 or to -128
    expected = torch.full((5, 3), 2.0 * inputs * (code - zero) * (127 if sign > 0 else -128))
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
    y = natively(layer, kernels, x)
    for row in (1, 3, 4):
        assert y[row].isnan().all()
        assert layer(x)[row].isnan().all()
    finite = torch.tensor([0, 2, 5, 6, 7])
    assert_near_the_formula(layer, x[finite], y[finite])
    assert_near_the_formula(layer, x[finite], layer(x)[finite])
    for row in finite:
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
