"""gpt-oss as it is published, its experts in MXFP4, against transformers' own reading of the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from model.checkpoint import WEIGHTS
from model.folder import LoadError
from model.inspection import inspect_folder
from model.loader import load, open_folder
from model.quantization.mxfp4 import decode
from tests.model.decoders import random_ids, whole
from tests.model.kernels.paths import same_bits

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers

# As OpenAI writes it beside these weights.
CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}
EXPERTS, HIDDEN, INNER = 4, 64, 96
SHAPES = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}


def random_bytes(*shape: int, least: int, most: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(least, most, shape, generator=generator, dtype=torch.uint8)


def write_pair(folder: Path) -> tuple[Path, Path, GptOssForCausalLM]:
    """A folder in MXFP4, the same values in bfloat16, and transformers' model of these."""
    packed, plain = folder / "packed", folder / "plain"
    config = GptOssConfig(
        vocab_size=90, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=EXPERTS, num_experts_per_tok=2,
        max_position_embeddings=256, sliding_window=8, swiglu_limit=7.0, initial_context_length=4096,
        eos_token_id=2, pad_token_id=1, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = GptOssForCausalLM(config).bfloat16().eval()
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for seed, (name, (num_outputs, num_inputs)) in enumerate(SHAPES.items(), start=2 * index):
            blocks = random_bytes(EXPERTS, num_outputs, num_inputs // 32, 16, least=0, most=256, seed=seed)
            scales = random_bytes(EXPERTS, num_outputs, num_inputs // 32, least=119, most=125, seed=seed)
            getattr(layer.mlp.experts, name).data = convert_moe_packed_tensors(blocks, scales)
            stored = f"model.layers.{index}.mlp.experts.{name}"
            tensors |= {f"{stored}_blocks": blocks, f"{stored}_scales": scales}
    model.save_pretrained(plain)
    model.save_pretrained(packed)
    others = load_file(packed / WEIGHTS)
    tensors |= {
        name: tensor for name, tensor in others.items() if not name.endswith(("up_proj", "down_proj"))
    }
    save_file(tensors, packed / WEIGHTS, {"format": "pt"})
    change_config(packed, quantization_config=CONFIG)
    return packed, plain, model


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_code_at_every_scale_is_transformers_bit_for_bit() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    blocks = codes.view(1, 1, 16, 16).expand(1, 255, 16, 16).contiguous()
    scales = codes[:255].view(1, 255, 1).expand(1, 255, 16).contiguous()
    ours = decode({"blocks": blocks, "scales": scales}, int)["weight"].contiguous()
    assert same_bits(ours, convert_moe_packed_tensors(blocks, scales))
    assert ours[0, 4, :3].tolist() == [2.0**-127, 2.0**-126, 2.0**-125], "1.0 at the smallest scales"
    broken = decode({"blocks": blocks[:, :1], "scales": scales[:, :1] + 255}, int)["weight"]
    assert broken.isnan().all()


def test_a_published_folder_is_served_as_the_same_values_in_bfloat16(tmp_path: Path) -> None:
    packed, plain, model = write_pair(tmp_path)
    ours, same = load(open_folder(packed)).decoder, load(open_folder(plain)).decoder
    expected = dict(same.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    ids = random_ids(40, 90, seed=3)
    assert torch.equal(whole(ours, ids), whole(same, ids))
    single = load(open_folder(packed, "float32")).decoder
    with torch.no_grad():
        logits = model.float()(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(whole(single, ids), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    report = inspect_folder(packed)
    assert report.num_parameters == inspect_folder(plain).num_parameters


def test_its_experts_can_be_quantized_at_load(tmp_path: Path) -> None:
    packed, plain, _ = write_pair(tmp_path)
    ours, same = (load(open_folder(folder, quantize="int8")).decoder for folder in (packed, plain))
    ids = random_ids(20, 90, seed=3)
    assert torch.equal(whole(ours, ids), whole(same, ids))


Spoil = Callable[[dict[str, Tensor]], object]
FIRST = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(f"{FIRST}_scales"), rf"{FIRST}_blocks"),
        (lambda t: t.pop(f"{FIRST}_blocks"), rf"{FIRST}_scales.* belongs to a layer without 'blocks'"),
        (
            lambda t: t.update({f"{FIRST}_scales": t[f"{FIRST}_scales"][:, :, :1].contiguous()}),
            r"scales of \[4, 64, 1\], expected",
        ),
        (
            lambda t: t.update({f"{FIRST}_blocks": t[f"{FIRST}_blocks"].float()}),
            "'blocks' is float32, must be uint8",
        ),
        (
            lambda t: t.update(
                {f"{FIRST}_{n}": t[f"{FIRST}_{n}"][:3].contiguous() for n in ("blocks", "scales")}
            ),
            "experts.3.w2.weight. is missing",
        ),
        (lambda t: t[f"{FIRST}_scales"].fill_(255), "NaN"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(tmp_path: Path, spoil: Spoil, message: str) -> None:
    packed, _, _ = write_pair(tmp_path)
    tensors = load_file(packed / WEIGHTS)
    spoil(tensors)
    save_file(tensors, packed / WEIGHTS, {"format": "pt"})
    with pytest.raises(LoadError, match=message) as caught:
        load(open_folder(packed))
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused_by_its_name(tmp_path: Path) -> None:
    packed, _, _ = write_pair(tmp_path)
    change_config(packed, quantization_config=CONFIG | {"group_size": 64})
    with pytest.raises(LoadError, match=r"quantization_config \(mxfp4\): group_size is 64"):
        open_folder(packed)
