"""Norms, activations and rotations, natively: right, and the same at every place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels.library import Kernels
from tests.model.kernels.paths import DTYPES, EACH, same_bits
from tests.model.kernels.test_linear import random

# In float64, without the subtraction from one that costs torch's own GELUs their tails.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": lambda x: x * torch.special.erfc(-x / 2**0.5) / 2,
    "gelu_tanh": lambda x: x * torch.sigmoid((8 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "silu": lambda x: x * torch.sigmoid(x),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
ANY_EXAMPLE = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_near(actual: Tensor, expected: Tensor, units: float) -> None:
    """Within so many float32 roundings of the largest number, and one of the dtype."""
    error = (actual.double() - expected).abs()
    size = expected.abs().max() if expected.numel() else 0.0
    assert (error <= units * 2.0**-24 * size + torch.finfo(actual.dtype).eps * expected.abs()).all()


@EACH
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_their_formulas(kernels: Kernels, name: str) -> None:
    """To a part of 1e-6 of each value, in the tails of the exponent too, wherever it is no denormal."""
    x = torch.cat((torch.linspace(-14, 14, 4001), torch.logspace(-30, 30, 61), -torch.logspace(-30, 30, 61)))
    expected = ACTIVATIONS[name](x.double())
    y = kernels.activate(name, x.view(1, -1), None).view(-1).double()
    exponent = torch.where(expected == 0.0, 0.0, (expected / x.double()).abs().log().abs())
    assert ((y - expected).abs() <= 1e-6 * (1 + exponent) * expected.abs() + 1e-37).all()


@EACH
def test_the_exponential_is_right_where_it_begins_and_ends(kernels: Kernels) -> None:
    """silu divides by 1 + e^-x: every float32 near the ends of what e^-x can be."""
    ends = torch.tensor([-88.722839, -86.5, 86.5], dtype=torch.float32).view(torch.int32)
    x = (ends[:, None] + torch.arange(-2000, 2001, dtype=torch.int32)).view(torch.float32)
    expected = ACTIVATIONS["silu"](x.double())
    y = kernels.activate("silu", x, None).double()
    assert ((y - expected).abs() <= 1e-4 * expected.abs() + 3e-37).all()


@EACH
@pytest.mark.parametrize("name", ACTIVATIONS)
@given(st.sampled_from(DTYPES), st.integers(0, 9), st.integers(1, 70), st.booleans())
@ANY_EXAMPLE
def test_activations_are_the_same_at_every_place(
    kernels: Kernels, name: str, dtype: torch.dtype, rows: int, size: int, has_factor: bool
) -> None:
    x = random(rows, size, dtype=dtype, seed=1) * 4
    factor = random(rows, size, dtype=dtype, seed=2) if has_factor else None
    y = kernels.activate(name, x, factor)
    each = kernels.activate(name, x.view(-1, 1), None if factor is None else factor.view(-1, 1))
    assert same_bits(y, each.view(rows, size))


@EACH
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_infinity_pass(kernels: Kernels, name: str) -> None:
    y = kernels.activate(name, torch.tensor([[torch.nan, torch.inf, 1.0]]), None)
    assert y[0, 0].isnan()
    assert y[0, 1] == torch.inf
    assert y[0, 2].isfinite()


@EACH
@given(st.sampled_from(DTYPES), st.integers(0, 9), st.integers(1, 200), st.booleans(), st.booleans())
@ANY_EXAMPLE
def test_layer_norm_equals_the_formula(
    kernels: Kernels, dtype: torch.dtype, rows: int, size: int, has_weight: bool, has_bias: bool
) -> None:
    x = 3 * random(rows, size, dtype=dtype, seed=3) + 1
    weight = random(size, dtype=dtype, seed=4) if has_weight else None
    bias = random(size, dtype=dtype, seed=5) if has_bias else None
    y = kernels.layer_norm(x, weight, bias, 1e-3)
    expected = F.layer_norm(x.double(), (size,), eps=1e-3)
    expected = expected if weight is None else expected * weight.double()
    expected = expected if bias is None else expected + bias.double()
    assert_near(y, expected, 200)
    for i in range(rows):
        assert same_bits(kernels.layer_norm(x[i], weight, bias, 1e-3), y[i])


@EACH
@given(st.sampled_from(DTYPES), st.integers(0, 9), st.integers(1, 200), st.sampled_from([0.0, 1.0]))
@ANY_EXAMPLE
def test_rms_norm_equals_the_formula(
    kernels: Kernels, dtype: torch.dtype, rows: int, size: int, offset: float
) -> None:
    x, weight = 3 * random(rows, size, dtype=dtype, seed=6), random(size, dtype=dtype, seed=7)
    y = kernels.rms_norm(x, weight, 1e-3, offset)
    root = torch.sqrt(x.double().square().mean(-1, keepdim=True) + 1e-3)
    assert_near(y, x.double() / root * (offset + weight.double()), 50)
    for i in range(rows):
        assert same_bits(kernels.rms_norm(x[i], weight, 1e-3, offset), y[i])


@EACH
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 40),
    st.booleans(),
    st.data(),
)
@ANY_EXAMPLE
def test_rotations_equal_the_formula(
    kernels: Kernels,
    dtype: torch.dtype,
    rows: int,
    heads: int,
    size: int,
    is_interleaved: bool,
    data: st.DataObject,
) -> None:
    """As products of complex numbers; what is beyond the pairs stays as it is."""
    pairs = data.draw(st.integers(0, size // 2))
    x = random(rows, heads, size, dtype=dtype, seed=8)
    table = random(7, pairs, dtype=torch.float32, seed=9)
    positions = torch.tensor(
        data.draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows)), dtype=torch.int64
    )
    y = kernels.rotate(x, table.cos(), table.sin(), positions, is_interleaved)
    angles = table[positions].unsqueeze(1)
    turned = x[..., : 2 * pairs].double()
    halves = turned.unflatten(-1, (pairs, 2) if is_interleaved else (2, pairs))
    halves = halves if is_interleaved else halves.transpose(-1, -2)
    turn = torch.complex(angles.cos().double(), angles.sin().double())
    product = torch.view_as_real(torch.complex(halves[..., 0], halves[..., 1]) * turn)
    expected = (product if is_interleaved else product.transpose(-1, -2)).flatten(-2)
    assert_near(y[..., : 2 * pairs], expected, 4)
    assert same_bits(y[..., 2 * pairs :], x[..., 2 * pairs :])


@EACH
@given(st.sampled_from(DTYPES), st.integers(0, 3), st.integers(1, 70), st.sampled_from([1.0, 0.3]))
@ANY_EXAMPLE
def test_the_skip_connection_has_the_bits_of_plain_torch(
    kernels: Kernels, dtype: torch.dtype, rows: int, size: int, scale: float
) -> None:
    x, y = (random(rows, size, dtype=dtype, seed=seed) for seed in (1, 2))
    assert same_bits(kernels.add(x, y, scale), x + y * scale)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_threads_share_out_have_the_bits_of_each_alone(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    """Threads share rows only of more than 2^14 numbers."""
    rows, heads, size = 41, 3, 151
    x, y = (random(rows, heads * size, dtype=dtype, seed=seed) for seed in (1, 2))
    weight, bias = (random(heads * size, dtype=dtype, seed=seed) for seed in (3, 4))
    table, positions = random(rows, 11, dtype=torch.float32, seed=5), torch.arange(rows).flip(0)

    def of(some: slice) -> list[Tensor]:
        turned = x[some].view(-1, heads, size), table.cos(), table.sin(), positions[some]
        return [
            *(kernels.activate(name, x[some], y[some]) for name in ACTIVATIONS),
            kernels.add(x[some], y[some], 0.3),
            kernels.layer_norm(x[some], weight, bias, 1e-3),
            kernels.rms_norm(x[some], weight, 1e-3, 1.0),
            *(kernels.rotate(*turned, is_interleaved) for is_interleaved in (True, False)),
        ]

    alone = [torch.cat(each) for each in zip(*(of(slice(row, row + 1)) for row in range(rows)), strict=True)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(same_bits, of(slice(None)), alone))
    finally:
        torch.set_num_threads(before)
