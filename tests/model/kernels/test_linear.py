"""The native linear layer is right, and gives a row its bits whatever the other rows are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels import library
from model.kernels.library import Kernels
from tests.model.kernels.paths import AVAILABLE, DTYPES, EACH, same_bits

# One for each function, though the fixture is made once: kernels have no state.
ANY_EXAMPLE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_float64(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().t()
    return y if bias is None else y + bias.double()


@EACH
@given(st.sampled_from(DTYPES), st.integers(0, 40), st.integers(1, 300), st.integers(1, 150), st.booleans())
@ANY_EXAMPLE
def test_it_equals_the_formula(
    kernels: Kernels, dtype: torch.dtype, rows: int, inputs: int, outputs: int, has_bias: bool
) -> None:
    """Within the error of a sum in float32, and of one rounding to the dtype."""
    x, weight = random(rows, inputs, dtype=dtype, seed=1), random(outputs, inputs, dtype=dtype, seed=2)
    bias = random(outputs, dtype=dtype, seed=3) if has_bias else None
    y = kernels.linear(x, weight, bias)
    expected = in_float64(x, weight, bias)
    summands = x.double().abs() @ weight.double().abs().t() + 1.0 + expected.abs()
    bound = inputs * 2.0**-24 * summands + torch.finfo(dtype).eps * expected.abs()
    assert y.shape == (rows, outputs)
    assert y.dtype == dtype
    assert ((y.double() - expected).abs() <= bound).all()


@EACH
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 70),
    st.lists(st.integers(0, 69), min_size=1, max_size=70),
    st.integers(1, 200),
    st.integers(1, 90),
    st.integers(1, 3),
)
@ANY_EXAMPLE
def test_a_row_has_its_bits_in_any_company(
    kernels: Kernels, dtype: torch.dtype, rows: int, order: list[int], inputs: int, outputs: int, threads: int
) -> None:
    x, weight = random(rows, inputs, dtype=dtype, seed=4), random(outputs, inputs, dtype=dtype, seed=5)
    bias = random(outputs, dtype=dtype, seed=6)
    chosen = torch.tensor([place % rows for place in order])
    alone = torch.cat([kernels.linear(x[i : i + 1], weight, bias) for i in range(rows)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert same_bits(kernels.linear(x, weight, bias), alone)
        assert same_bits(kernels.linear(x[chosen], weight, bias), alone[chosen])
    finally:
        torch.set_num_threads(before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_products_keep_their_bits(kernels: Kernels, dtype: torch.dtype) -> None:
    """More rows and outputs than one block of either, and more than one thread."""
    x, weight = random(512, 600, dtype=dtype, seed=7), random(700, 600, dtype=dtype, seed=8)
    whole = kernels.linear(x, weight, None)
    for rows in (1, 2, 3, 4, 5, 31, 32, 33, 511):
        assert same_bits(kernels.linear(x[-rows:], weight, None), whole[-rows:])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same_bits(kernels.linear(x, weight, None), whole)
    finally:
        torch.set_num_threads(before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_stay_in_their_row(kernels: Kernels, dtype: torch.dtype) -> None:
    """NaN and infinities harm no other row; the smallest numbers are lost by some instructions alone."""
    x, weight = random(6, 100, dtype=dtype, seed=9), random(30, 100, dtype=dtype, seed=10)
    expected = kernels.linear(x, weight, None)
    x[1, 3], x[3, 99], x[4] = torch.nan, torch.inf, torch.finfo(dtype).max
    y = kernels.linear(x, weight, None)
    for row in (0, 2, 5):
        assert same_bits(y[row], expected[row])
    assert y[1].isnan().all()
    assert not y[3].isfinite().any()
    tiny = torch.full((1, 1), 2.0**-126, dtype=dtype)
    product = kernels.linear(tiny, torch.full((1, 1), 0.5, dtype=dtype), None).item()
    # The processors' instructions for bfloat16 take denormals, and give them, as 0.
    are_lost = dtype == torch.bfloat16 and kernels.path in ("avx512_bf16", "amx")
    assert product == (0.0 if are_lost else 2.0**-127)


@EACH
def test_what_a_kernel_would_misread_is_refused(kernels: Kernels) -> None:
    x, weight = torch.zeros(4, 6), torch.zeros(5, 6)
    with pytest.raises(TypeError, match="must be one"):
        kernels.linear(x, weight.bfloat16(), None)
    with pytest.raises(TypeError, match="not contiguous"):
        kernels.linear(x, torch.zeros(6, 5).t(), None)


@pytest.mark.skipif(not AVAILABLE, reason="no native kernels: there was no compiler")
def test_a_path_that_computes_wrongly_is_refused_by_name_and_else_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest, *others = AVAILABLE
    right = library._is_right
    monkeypatch.setattr(library, "_is_right", lambda kernels: kernels.path != fastest and right(kernels))
    with pytest.raises(ValueError, match=f"kernels is '{fastest}', which computes wrongly"):
        library.open_library(fastest)
    chosen = library.open_library("auto")
    assert (chosen and chosen.path) == (others[0] if others else None)
