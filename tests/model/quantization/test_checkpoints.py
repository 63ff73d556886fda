"""Checkpoints that are quantized already: what their bits mean, by the formats' definitions in float64."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import WEIGHTS
from model.counting import count_parameters, count_weight_bytes
from model.decoder import Decoder
from model.folder import LoadError
from model.inspection import inspect_folder
from model.linear import Linear
from model.loader import load, open_folder
from model.quantization import SCHEMES, QuantizedLinear
from model.runner import ModelRunner, RunnerOptions
from tests.model.decoders import random_ids, whole
from tests.model.quantization import packers
from tests.model.quantization.packers import Packer, write_pair

GPTQ = {"quant_method": "gptq", "damp_percent": 0.01, "true_sequential": True, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
BNB = {"quant_method": "bitsandbytes", "llm_int8_threshold": 6.0, "bnb_4bit_compute_dtype": "bfloat16"}


def compressed(kind: str, weights: dict[str, Any], rows: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": rows, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


def integers(bits: int, **more: object) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | more


FORMATS: dict[str, tuple[dict[str, Any], Packer]] = {
    **{
        f"gptq {bits} bits": (GPTQ | {"bits": bits, "group_size": 32}, packers.gptq(bits, 32))
        for bits in (2, 3, 4, 8)
    },
    "gptq, one group": (GPTQ | {"bits": 4, "group_size": -1, "desc_act": True}, packers.gptq(4, -1)),
    "gptq in another order": (
        GPTQ | {"bits": 4, "group_size": 32, "desc_act": True},
        packers.gptq(4, 32, is_ordered=True),
    ),
    "gptq v2": (
        GPTQ | {"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        packers.gptq(4, 32, is_v2=True),
    ),
    "awq": (AWQ, packers.awq(32)),
    "w4a16": (compressed("pack-quantized", integers(4)), packers.packed_integers(4, 32, is_symmetric=True)),
    "w4a16, zero points": (
        compressed("pack-quantized", integers(4, symmetric=False)),
        packers.packed_integers(4, 32, is_symmetric=False),
    ),
    "w4a16 in another order": (
        compressed("pack-quantized", integers(4, actorder="group")),
        packers.packed_integers(4, 32, is_symmetric=True, is_ordered=True),
    ),
    "w8a16": (compressed("pack-quantized", integers(8)), packers.packed_integers(8, 32, is_symmetric=True)),
    "bitsandbytes int8": (BNB | {"load_in_8bit": True}, packers.bitsandbytes_int8),
    "nf4": (BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, packers.nf4(32, is_nested=False)),
    "nf4, double": (BNB | {"load_in_4bit": True}, packers.nf4(32, is_nested=True)),
    "fp8": (
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        packers.fp8("weight_scale", packers.of_the_whole),
    ),
    "fp8 in blocks": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [40, 32]},
        packers.fp8("weight_scale_inv", packers.in_blocks(40, 32)),
    ),
    "compressed fp8": (
        compressed(
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        ),
        packers.fp8("weight_scale", packers.of_each_output),
    ),
}
W8A8 = compressed(
    "int-quantized",
    {"num_bits": 8, "type": "int", "strategy": "channel"},
    {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
)


def weight_of(module: Linear | QuantizedLinear) -> Tensor:
    """[out, in], the inputs in their order."""
    if isinstance(module, Linear):
        return module.weight
    weight = module.decoded(slice(None))
    if module.order is None:
        return weight
    in_order = torch.empty_like(weight)
    in_order[:, module.order] = weight
    return in_order


def linears(decoder: Decoder) -> dict[str, Linear | QuantizedLinear]:
    return {
        path: module
        for path, module in decoder.named_modules()
        if isinstance(module, Linear | QuantizedLinear)
    }


def compare(packed: Path, plain: Path, *, is_exact: bool) -> None:
    """Every layer's weight, bit for bit if one rounding is all that there is; and the logits."""
    actual, expected = load(open_folder(packed)).decoder, load(open_folder(plain)).decoder
    assert count_parameters(actual) == count_parameters(expected)
    modules = linears(expected)
    for path, module in linears(actual).items():
        if is_exact:
            assert torch.equal(weight_of(module), weight_of(modules[path])), path
        torch.testing.assert_close(weight_of(module), weight_of(modules[path]), rtol=1e-6, atol=1e-7)
    ids = random_ids(40, 90, seed=1)
    logits = whole(expected, ids)
    difference = (whole(actual, ids) - logits).abs().max()
    assert difference <= 1e-4 * logits.abs().max()


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_means_what_its_format_defines(name: str, tmp_path: Path) -> None:
    config, packer = FORMATS[name]
    packed, plain = write_pair(tmp_path, "llama", config, packer)
    compare(packed, plain, is_exact="bitsandbytes" not in name and "double" not in name)
    folder = open_folder(packed)
    assert folder.quantization == config["quant_method"]
    kept = [type(module) for path, module in linears(folder.decoder).items() if path.startswith("layers")]
    assert len(set(kept)) == 1
    assert (kept[0] is Linear) == ("fp8" in name)


@pytest.mark.parametrize("model_type", ["phi3", "gpt_neox", "qwen2_moe"])
@pytest.mark.parametrize("name", ["gptq in another order", "awq", "w4a16, zero points", "nf4, double", "fp8"])
def test_fused_layers_and_experts_are_split_as_their_weights_are(
    model_type: str, name: str, tmp_path: Path
) -> None:
    config, packer = FORMATS[name]
    compare(*write_pair(tmp_path, model_type, config, packer), is_exact="double" not in name)


def test_w8a8_rounds_each_row_of_x_and_sums_exactly(tmp_path: Path) -> None:
    packed, plain = write_pair(tmp_path, "llama", W8A8, packers.int8_rows)
    decoder = load(open_folder(packed)).decoder
    expected = linears(load(open_folder(plain)).decoder)
    for path, module in linears(decoder).items():
        if path == "output":
            continue
        weight = weight_of(expected[path]).double()
        assert torch.equal(weight_of(module), weight_of(expected[path]))
        x = torch.randn(19, weight.shape[1], generator=torch.Generator().manual_seed(2))
        scales = x.double().abs().amax(1, keepdim=True) / 127.5
        rounded = (x.double() / scales).round().clamp(-128, 127) * scales
        torch.testing.assert_close(module(x).double(), rounded @ weight.t(), rtol=1e-5, atol=1e-5)
    assert whole(decoder, random_ids(20, 90, seed=3)).isfinite().all()


def test_a_row_of_zeros_stays_zero_in_w8a8(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path, "llama", W8A8, packers.int8_rows)
    module = linears(load(open_folder(packed)).decoder)["layers.0.attention.wq"]
    assert torch.equal(module(torch.zeros(3, 64)), torch.zeros(3, 64))


def test_packed_layers_take_the_memory_that_is_planned(tmp_path: Path) -> None:
    config, packer = FORMATS["gptq 4 bits"]
    packed, plain = write_pair(tmp_path, "llama", config, packer)
    folder = open_folder(packed)
    planned = count_weight_bytes(folder.decoder, folder.dtype)
    decoder = load(folder).decoder
    assert planned == sum(parameter.nbytes for parameter in decoder.parameters())
    dense = open_folder(plain)
    assert planned < 0.6 * count_weight_bytes(dense.decoder, dense.dtype)


def test_a_bias_that_only_the_checkpoint_has_is_added(tmp_path: Path) -> None:
    """Older writers of GPTQ store one for every layer."""
    config, packer = FORMATS["gptq 4 bits"]
    packed, _ = write_pair(tmp_path, "llama", config, packer)
    tensors = load_file(packed / WEIGHTS)
    before = whole(load(open_folder(packed)).decoder, range(20))
    bias = "model.layers.0.self_attn.o_proj.bias"
    save_file(tensors | {bias: torch.zeros(64)}, packed / WEIGHTS)
    assert torch.equal(whole(load(open_folder(packed)).decoder, range(20)), before)
    save_file(tensors | {bias: torch.ones(64)}, packed / WEIGHTS)
    assert not torch.equal(whole(load(open_folder(packed)).decoder, range(20)), before)


def changed(config: dict[str, Any], **changes: object) -> dict[str, Any]:
    return config | changes


REFUSED: dict[str, tuple[object, str]] = {
    "unknown method": ({"quant_method": "aqlm"}, "quant_method is 'aqlm', must be one of awq, bitsandbytes"),
    "no method": ({"bits": 4}, "quant_method is 'None', must be one of"),
    "not an object": ([1], "quant_method is '', must be one of"),
    "gptq 5 bits": (changed(FORMATS["gptq 4 bits"][0], bits=5), r"\(gptq\): .*`\$.bits`"),
    "gptq other layout": (
        changed(FORMATS["gptq 4 bits"][0], checkpoint_format="marlin"),
        r"\(gptq\): .*`\$.checkpoint_format`",
    ),
    "unknown field": (
        changed(AWQ, rotation="hadamard"),
        r"\(awq\): rotation is hadamard, which is not supported",
    ),
    "awq gemv": (changed(AWQ, version="gemv"), r"\(awq\): .*`\$.version`"),
    "awq without zero points": (changed(AWQ, zero_point=False), r"\(awq\): zero_point is False"),
    "two groups": (
        changed(W8A8, config_groups={"a": {"weights": {}}, "b": {"weights": {}}}),
        r"\(compressed-tensors\): config_groups has 2 groups",
    ),
    "static activations": (
        compressed("int-quantized", W8A8["config_groups"]["group_0"]["weights"], {"num_bits": 8}),
        r"\(compressed-tensors\): format 'int-quantized' with weights of 8 bits",
    ),
    "quantized cache": (changed(W8A8, kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is"),
    "fp8 e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, r"\(fp8\): .*`\$.fmt`"),
    "bitsandbytes of neither": ({"quant_method": "bitsandbytes"}, "one of load_in_8bit and load_in_4bit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    packed, _ = write_pair(tmp_path, "llama", config, FORMATS["awq"][1])  # type: ignore[arg-type]
    with pytest.raises(LoadError, match=message) as raised:
        open_folder(packed)
    assert str(raised.value).startswith("config.json: quantization_config")
    assert "\n" not in str(raised.value)


Spoil = Callable[[dict[str, Tensor]], object]
LAYER = "model.layers.0.self_attn.q_proj."
SPOILT: dict[str, tuple[str, Spoil, str]] = {
    "no scales": ("awq", lambda t: t.pop(LAYER + "scales"), "layer without 'scales'"),
    "no words": ("awq", lambda t: t.pop(LAYER + "qweight"), "no place|missing"),
    "short scales": (
        "awq",
        lambda t: t.update({LAYER + "scales": t[LAYER + "scales"][:1].clone()}),
        "with scales of",
    ),
    "other inputs": (
        "gptq 4 bits",
        lambda t: t.update({LAYER + "qweight": t[LAYER + "qweight"][:4].clone()}),
        r"groups for \[64\] inputs, expected 32",
    ),
    "other outputs": (
        "gptq 4 bits",
        lambda t: t.update(
            {
                LAYER + "qweight": t[LAYER + "qweight"][:, :32].clone(),
                LAYER + "qzeros": t[LAYER + "qzeros"][:, :4].clone(),
                LAYER + "scales": t[LAYER + "scales"][:, :32].clone(),
            }
        ),
        r"wq' \[32, 64\], expected \[64, 64\]",
    ),
    "float words": (
        "awq",
        lambda t: t.update({LAYER + "qweight": t[LAYER + "qweight"].float()}),
        "'qweight' is float32, must be int32",
    ),
    "groups out of order": (
        "gptq 4 bits",
        lambda t: t[LAYER + "g_idx"].copy_(t[LAYER + "g_idx"].flip(0)),
        "not in order, but desc_act is false",
    ),
    "uneven groups": (
        "gptq in another order",
        lambda t: t[LAYER + "g_idx"].zero_(),
        "groups have different sizes",
    ),
    "NaN in a scale": ("awq", lambda t: t[LAYER + "scales"].fill_(torch.nan), "holds NaN or infinity"),
    "another block size": (
        "nf4",
        lambda t: t.update({LAYER + "weight.absmax": t[LAYER + "weight.absmax"][::2].clone()}),
        "in blocks of 32, expected .* in blocks of 64",
    ),
    "tiled int8": (
        "bitsandbytes int8",
        lambda t: t[LAYER + "weight_format"].fill_(1),
        "must be 0, by rows",
    ),
    "few scales of blocks": (
        "fp8 in blocks",
        lambda t: t.update({LAYER + "weight_scale_inv": t[LAYER + "weight_scale_inv"][:1].clone()}),
        r"scales of \[1, 2\], expected \[2, 2\]",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_layer_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    format_name, spoil, message = SPOILT[name]
    packed, _ = write_pair(tmp_path, "llama", *FORMATS[format_name])
    tensors = load_file(packed / WEIGHTS)
    spoil(tensors)
    save_file(tensors, packed / WEIGHTS)
    with pytest.raises(LoadError, match=message) as raised:
        load(open_folder(packed))
    assert str(raised.value).startswith(WEIGHTS)
    assert "\n" not in str(raised.value)


def test_layers_that_are_stored_transposed_are_refused(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path, "gpt2", *FORMATS["gptq 4 bits"])
    with pytest.raises(LoadError, match=r"model\.safetensors: tensor 'transformer\.h\.0\.attn\.c_attn"):
        open_folder(packed)


def test_a_config_that_promises_what_the_tensors_are_not_is_refused(tmp_path: Path) -> None:
    _, plain = write_pair(tmp_path, "llama", *FORMATS["awq"])
    path = plain / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": AWQ}))
    with pytest.raises(LoadError, match=r"model.safetensors: no tensor is called '\*\.qweight'"):
        open_folder(plain)


def test_quantizing_again_is_refused_but_for_what_was_decoded(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path / "awq", "llama", *FORMATS["awq"])
    with pytest.raises(LoadError, match="quantize is 'int8', but the weights are quantized already"):
        open_folder(packed, quantize="int8")
    packed, _ = write_pair(tmp_path / "fp8", "llama", *FORMATS["fp8"])
    decoder = load(open_folder(packed, quantize="int8")).decoder
    assert all(isinstance(module, QuantizedLinear) for module in linears(decoder).values())


def test_routers_and_gates_stay_as_they_are(tmp_path: Path) -> None:
    _, plain = write_pair(tmp_path, "qwen2_moe", *FORMATS["awq"])
    held = linears(load(open_folder(plain, quantize="int4")).decoder)
    dense = {path for path, module in held.items() if isinstance(module, Linear)}
    assert dense == {f"layers.0.feed_forward.{name}" for name in ("router", "shared_gate")}


def test_plan_and_inspection_tell_of_it(tmp_path: Path) -> None:
    packed, plain = write_pair(tmp_path, "llama", *FORMATS["gptq 4 bits"])
    infos = {
        name: ModelRunner.plan(path, RunnerOptions(model_id="x", quantize=name))
        for name, path in (("none", packed), ("int8", plain), ("int4", plain))
    }
    assert [info.quantization for info in infos.values()] == ["gptq", "int8", "int4"]
    dense = ModelRunner.plan(plain, RunnerOptions(model_id="x"))
    assert dense.quantization is None
    for info in infos.values():
        assert info.num_parameters == dense.num_parameters
        assert info.memory.weight_bytes < 0.6 * dense.memory.weight_bytes
        assert info.memory.step_bytes > dense.memory.step_bytes
    report = inspect_folder(packed)
    assert sum(report.parts.values()) == report.num_parameters == dense.num_parameters
    assert report.unusual == (
        "its weights are quantized: gptq, 14 layers", "it has no tokenizer",
    )  # fmt: skip


def test_every_scheme_has_a_checkpoint_here_and_a_row_in_the_documents() -> None:
    """But for MXFP4, which has a test file of its own: it is gpt-oss's alone."""
    assert {str(config["quant_method"]) for config, _ in FORMATS.values()} == set(SCHEMES) - {"mxfp4"}
    page = Path(__file__).resolve().parents[3] / "docs" / "quantization.md"
    table = page.read_text("utf-8").partition("| `quant_method` |")[2]
    assert re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE) == sorted(SCHEMES)
