"""Quantized linear layers: a row's bits depend on that row alone, and rounding errors have their bounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from model.counting import count_parameters, count_weight_bytes
from model.decoder import Decoder
from model.kernels.library import open_library
from model.linear import ROW_BLOCK, Linear
from model.loader import load, open_folder
from model.quantization import AT_LOAD, QuantizedLinear, int8
from model.quantization.int4 import GROUP_SIZE, Int4Linear, Int4RowsLinear, pack, unpack
from model.quantization.int8 import Int8Linear, Int8RowsLinear, round_to_int8
from model.quantization.linear import TILE_ELEMENTS
from tests.model.decoders import LLAMA_LIKE, Stepper, cut, random_decoder, random_ids, whole
from tests.model.folders import stored_tensors, write_folder
from tests.model.kernels.paths import ON_AND_OFF

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
KINDS = ("int8", "int4", "w8a16", "w4a16", "ordered", "table")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_four_bits(weight: Tensor) -> dict[str, Tensor]:
    """With a scale and a zero point for each group, as checkpoints have them."""
    groups = torch.nn.functional.pad(weight, (0, -weight.shape[1] % GROUP_SIZE)).unflatten(
        1, (-1, GROUP_SIZE)
    )
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scales = (high - low) / 15 + 1e-6
    zeros = torch.round(-low / scales).clamp(0, 15)
    codes = (torch.round(groups / scales) + zeros).clamp(0, 15)
    zeros = zeros.squeeze(2).to(torch.uint8)
    return {"codes": pack(codes.flatten(1)), "scales": scales.squeeze(2).bfloat16(), "zeros": zeros}


def quantized(weight: Tensor, kind: str, has_bias: bool = True) -> QuantizedLinear:
    """A layer of each kind that this package has."""
    num_inputs = weight.shape[1]
    if kind in AT_LOAD:
        module, quantize = AT_LOAD[kind]
        layer = module(num_inputs, quantize(weight, None), has_bias)
    elif kind == "w8a16":
        layer = Int8Linear(num_inputs, AT_LOAD["int8"][1](weight, None), has_bias)
    else:
        packed = in_four_bits(weight)
        if kind == "ordered":
            packed["order"] = torch.randperm(num_inputs, generator=torch.Generator().manual_seed(1))
        elif kind == "table":
            del packed["zeros"]
            packed["table"] = torch.linspace(-1.0, 1.0, 16)
        layer = Int4Linear(num_inputs, packed, has_bias)
    if layer.bias is not None:
        layer.bias.data = drawn(len(weight), seed=9)
    return layer.requires_grad_(False)


def in_dtype(layer: QuantizedLinear, dtype: torch.dtype) -> QuantizedLinear:
    if layer.bias is not None:
        layer.bias.data = layer.bias.to(dtype)
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(256, 1100), (1100, 256), (100, 37), (1, 1), (2048, 300), (2, 40)])
def test_a_row_is_the_same_in_any_place(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    layer = in_dtype(quantized(drawn(shape[1], shape[0]), kind), dtype)
    row = drawn(1, shape[0], seed=1).to(dtype)
    expected = layer(row)
    assert expected.dtype == dtype
    for num_rows in (2, ROW_BLOCK - 1, ROW_BLOCK, ROW_BLOCK + 1, 3 * ROW_BLOCK + 5):
        for place in {0, 1, num_rows // 2, num_rows - 1}:
            x = drawn(num_rows, shape[0], seed=place + 2).to(dtype)
            x[place] = row
            assert torch.equal(layer(x)[place], expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    layer = quantized(drawn(3000, 512), kind)
    assert layer.tile_rows < layer.out_features, "several tiles"
    x = drawn(20, 512, seed=4)
    before = torch.get_num_threads()
    try:
        products = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            products.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in AT_LOAD])
def test_a_product_is_that_with_the_decoded_weight(kind: str) -> None:
    layer = quantized(drawn(300, 2048), kind)
    x = drawn(5, 2048, seed=6)
    ordered = x if layer.order is None else x[:, layer.order]
    assert layer.bias is not None
    expected = ordered.double() @ layer.decoded(slice(None)).double().t() + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", AT_LOAD)
def test_a_product_is_that_of_the_rounded_rows(kind: str) -> None:
    layer = quantized(drawn(300, 2000), kind)
    x = drawn(5, 2000, seed=6)
    rows, steps = round_to_int8(x)
    assert layer.bias is not None
    rounded = rows.double() * steps
    expected = rounded @ layer.decoded(slice(None)).double().t() + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert ((rounded - x).abs() <= 0.5001 * steps).all()


@ON_AND_OFF
@pytest.mark.parametrize("size", [1e-37, 2e-36, 1e-20, 1e34])
def test_rows_of_any_size_are_rounded_to_steps_of_theirs(path: str, size: float) -> None:
    layer = quantized(torch.ones(8, 64), "int8")
    layer.bias = None
    layer.kernels = open_library(path)
    x = drawn(3, 64, seed=3) * size
    expected = x.double().sum(1, keepdim=True).expand(3, 8)
    largest = x.double().abs().amax(1, keepdim=True)
    assert ((layer(x).double() - expected).abs() <= 64 * (largest / 255 + 2.0**-126) * 1.01).all()


@ON_AND_OFF
def test_weights_of_a_few_bits_keep_their_sign(path: str) -> None:
    """Their scale is rounded, too, by a third: the largest is no longer within 127 of its steps."""
    weight = torch.tensor([[190.0, 100.0, -190.0]]) * 2.0**-149
    assert int8.quantize(weight, open_library(path))["codes"].tolist() == [[127, 100, -127]]


weights = st.builds(
    lambda rows, columns, seed, scale: drawn(rows, columns, seed=seed) * 10.0**scale,
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 2**31),
    st.integers(-12, 12),
)


@given(weights, DTYPES)
@settings(max_examples=50)
def test_int8_is_off_by_half_a_step_of_its_row_at_most(weight: Tensor, dtype: torch.dtype) -> None:
    weight = weight.to(dtype)
    decoded = quantized(weight, "int8", has_bias=False).decoded(slice(None))
    step = weight.double().abs().amax(1, keepdim=True) / 127
    assert ((decoded.double() - weight.double()).abs() <= 0.5001 * step).all()


@given(weights, DTYPES)
@settings(max_examples=50)
def test_int4_is_off_by_less_than_a_step_of_its_group_and_keeps_zero(
    weight: Tensor, dtype: torch.dtype
) -> None:
    """By the root of the mean square: of two steps, the finer may lack an end."""
    weight = weight.to(dtype)
    weight[0, 0] = 0.0
    layer = quantized(weight, "int4", has_bias=False)
    decoded = layer.decoded(slice(None))
    assert decoded[0, 0] == 0.0
    assert layer.values(slice(None)).abs().max() <= 128, "they fit int8"
    for first in range(0, weight.shape[1], GROUP_SIZE):
        group = weight[:, first : first + GROUP_SIZE].double()
        span = group.amax(1, keepdim=True).clamp_min(0) - group.amin(1, keepdim=True).clamp_max(0)
        error = (decoded[:, first : first + GROUP_SIZE].double() - group).square().sum(1, keepdim=True)
        # A step is a whole number of the row's. Half of it is rounding; another half, at an end, the zero's.
        step = span / 15 + weight.double().abs().amax(1, keepdim=True) / 127
        assert (error <= 1.001 * group.shape[1] * step.square()).all()


def test_int4_is_as_near_as_groups_with_scales_of_their_own() -> None:
    """Of normal weights: in a scale of bfloat16 and a zero for each group they would take half a bit more."""
    weight = drawn(200, 2048)
    in_grids = quantized(weight, "int4", has_bias=False).decoded(slice(None))
    in_groups = quantized(weight, "w4a16", has_bias=False).decoded(slice(None))
    assert (in_grids - weight).square().mean() < 1.02 * (in_groups - weight).square().mean()


def test_rows_of_zeros_stay_zeros() -> None:
    for kind in ("int8", "int4"):
        assert not quantized(torch.zeros(3, 50), kind, has_bias=False).decoded(slice(None)).any()


@given(st.lists(st.lists(st.integers(0, 15), min_size=6, max_size=6), min_size=1, max_size=9))
def test_packing_four_bits_loses_nothing(rows: list[list[int]]) -> None:
    codes = torch.tensor(rows)
    assert unpack(pack(codes)).tolist() == rows


# ---- whole decoders ---------------------------------------------------------------------------------------

CONFIG = dataclasses.replace(LLAMA_LIKE, hidden_size=48, feed_forward_size=100)  # no multiples of a group


def quantize_all(decoder: Decoder, kind: str) -> Decoder:
    for path, module in list(decoder.named_modules()):
        if type(module) is Linear and path != "output":
            layer = quantized(module.weight.detach(), kind, module.bias is not None)
            if layer.bias is not None and module.bias is not None:
                layer.bias.data = module.bias.data
            decoder.set_submodule(path, layer)
    return decoder


@ON_AND_OFF
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_alone_equals_among_others_and_any_chunking(path: str, kind: str, dtype: torch.dtype) -> None:
    decoder = quantize_all(random_decoder(CONFIG, dtype), kind)
    decoder.use(open_library(path))
    sequences = [random_ids(11 + 7 * i, CONFIG.vocab_size, seed=i) for i in range(6)]
    expected = [whole(decoder, ids) for ids in sequences]
    stepper = Stepper(decoder, len(sequences))
    steps = [stepper.step([(i, 0, ids[:-10]) for i, ids in enumerate(sequences)])]
    for back in range(10, 0, -1):
        steps.append(stepper.step([(i, len(ids) - back, [ids[-back]]) for i, ids in enumerate(sequences)]))
    for i, ids in enumerate(sequences):
        assert torch.equal(torch.cat([step[i] for step in steps]), expected[i])
        stepper = Stepper(decoder, 1)
        pieces = [stepper.step([(0, start, piece)])[0] for start, piece in cut(ids, [1, 5, 17, 2])]
        assert torch.equal(torch.cat(pieces), expected[i])


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "separate output"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_folder_is_quantized_as_it_is_loaded(tmp_path: Path, kind: str, is_tied: bool) -> None:
    saved = write_folder(tmp_path, tie_word_embeddings=is_tied)
    folder = open_folder(tmp_path, quantize=kind)
    assert folder.quantization == kind
    planned = count_weight_bytes(folder.decoder, folder.dtype)
    decoder = load(folder).decoder
    assert planned == sum(parameter.nbytes for parameter in decoder.parameters())
    assert planned < count_weight_bytes(saved, torch.float32)
    assert count_parameters(decoder) == count_parameters(saved)
    for path, module in saved.named_modules():
        if isinstance(module, Linear):
            held = decoder.get_submodule(path)
            kind_here = "int8" if is_tied and path == "output" else kind
            assert type(held) is (Int8RowsLinear if kind_here == "int8" else Int4RowsLinear)
            expected = quantized(module.weight.detach(), kind_here)
            assert torch.equal(held.codes, expected.codes)
            assert torch.equal(held.scales, expected.scales)
    ids = torch.tensor([5, 299, 5])
    if is_tied:
        table = decoder.embedding.table
        assert table is not None
        assert table is decoder.get_submodule("output")
        rows = table.decoded(ids)
        assert (decoder.embedding(ids) == rows * decoder.embedding.scale).all()
        exact = saved.embedding.weight[ids]
        assert (rows - exact).abs().max() < exact.abs().max() / 250
    else:
        assert torch.equal(decoder.embedding.weight, saved.embedding.weight)


def test_a_quantized_weight_with_nan_is_refused(tmp_path: Path) -> None:
    saved = write_folder(tmp_path)
    tensors = stored_tensors(saved)
    tensors["layers.1.feed_forward.w1.weight"][3, 5] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    for kind in ("int8", "int4"):
        with pytest.raises(ValueError, match=r"layers\.1\.feed_forward\.w1\.weight' holds NaN"):
            load(open_folder(tmp_path, quantize=kind))


def test_temporaries_stay_small() -> None:
    """A tile is decoded at a time, whatever the layer's size."""
    for kind in KINDS:
        layer = quantized(drawn(4096, 512), kind)
        assert layer.tile_rows * layer.in_features <= TILE_ELEMENTS
        blocks = torch.get_num_threads() * 2**18  # of native kernels
        assert layer.temporary_bytes(16) < (8 * TILE_ELEMENTS + blocks) * 4
