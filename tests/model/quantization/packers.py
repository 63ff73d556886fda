"""Model folders in the formats of other people's quantizers, packed as the formats are published.

Independent of `model.quantization`: streams of bits are Python's integers here, weights are float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from model.checkpoint import WEIGHTS
from tests.model.families.checkpoints import random_model, save

Array = NDArray[Any]

SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    },
    "phi3": {
        "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "original_max_position_embeddings": 128, "pad_token_id": 0,
    },
    "gpt_neox": {
        "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 128,
    },
    "qwen2_moe": {
        "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "gpt2": {"vocab_size": 90, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One layer in some format: its tensors by ending, and the weight that they mean, [out, in], float64."""

    tensors: Mapping[str, Tensor]
    weight: Array


# A weight, [out, in], and a source of chance.
Packer = Callable[[Array, np.random.Generator], Stored]


def write_pair(
    folder: Path, model_type: str, quantization_config: dict[str, Any], packer: Packer
) -> tuple[Path, Path]:
    """Two folders of one random model: with the packed layers, and with what they mean as float32."""
    config = AutoConfig.for_model(model_type, bos_token_id=1, eos_token_id=2, **SIZES[model_type])
    packed_folder, plain_folder = folder / "packed", folder / "plain"
    for path in (packed_folder, plain_folder):
        save(random_model(config, torch.float32, 3), path, torch.float32)
    tensors = load_file(plain_folder / WEIGHTS)
    chance = np.random.default_rng(5)
    packed: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        layer = name.removesuffix(".weight")
        is_linear = tensor.dim() == 2 and ".layers." in name + "." and "gate.weight" not in name
        is_linear = is_linear or (".h." in name and tensor.dim() == 2)
        if not is_linear or layer.endswith("mlp.shared_expert_gate"):
            packed[name] = tensor
            continue
        stored = packer(tensor.double().numpy(), chance)
        tensors[name] = torch.from_numpy(stored.weight).float()
        packed |= {f"{layer}.{leaf}": t.contiguous() for leaf, t in stored.tensors.items()}
    save_file(tensors, plain_folder / WEIGHTS)
    save_file(packed, packed_folder / WEIGHTS)
    path = packed_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization_config}))
    return packed_folder, plain_folder


def words(values: Array, bits: int) -> Tensor:
    """The integers of each row as one stream of bits, the lowest first, in words of 32: [n, m] -> [n, k]."""
    rows = []
    for row in values.tolist():
        stream = sum(value << (bits * place) for place, value in enumerate(row))
        rows.append(np.frombuffer(stream.to_bytes(-(-len(row) * bits // 32) * 4, "little"), np.int32))
    return torch.from_numpy(np.stack(rows))


def chosen(
    weight: Array, num_groups: int, bits: int, chance: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Codes [out, in], zero points and scales [out, groups], as no good quantizer would choose them."""
    out = len(weight)
    codes = chance.integers(0, 2**bits, weight.shape)
    zeros = chance.integers(1, 2**bits, (out, num_groups))
    scales = chance.uniform(0.5, 1.5, (out, num_groups)) * np.abs(weight).max() / 2**bits
    return codes, zeros, scales.astype(np.float16).astype(np.float64)


def meant(codes: Array, zeros: Array, scales: Array, groups: Array) -> Array:
    """The definition of an affine code."""
    weight: Array = scales[:, groups] * (codes - zeros[:, groups])
    return weight


def gptq(bits: int, group_size: int, *, is_ordered: bool = False, is_v2: bool = False) -> Packer:
    def pack(weight: Array, chance: np.random.Generator) -> Stored:
        num_inputs = weight.shape[1]
        size = num_inputs if group_size == -1 else group_size
        groups = np.arange(num_inputs) // size
        if is_ordered:
            groups = chance.permutation(groups)
        codes, zeros, scales = chosen(weight, num_inputs // size, bits, chance)
        tensors = {
            "qweight": words(codes, bits).t(),
            "qzeros": words((zeros if is_v2 else zeros - 1).T, bits),
            "scales": torch.from_numpy(scales.T).half(),
            "g_idx": torch.from_numpy(groups).int(),
        }
        return Stored(tensors, meant(codes, zeros, scales, groups))

    return pack


def awq(group_size: int) -> Packer:
    def pack(weight: Array, chance: np.random.Generator) -> Stored:
        groups = np.arange(weight.shape[1]) // group_size
        codes, zeros, scales = chosen(weight, groups[-1] + 1, 4, chance)

        def interleaved(values: Array) -> Tensor:  # [out, n] -> [n, out / 8]
            eights = values.T.reshape(values.shape[1], -1, 8)
            return words(eights[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape[1], -1), 4)

        tensors = {
            "qweight": interleaved(codes),
            "qzeros": interleaved(zeros),
            "scales": torch.from_numpy(scales.T).half(),
        }
        return Stored(tensors, meant(codes, zeros, scales, groups))

    return pack


def packed_integers(bits: int, group_size: int, *, is_symmetric: bool, is_ordered: bool = False) -> Packer:
    """compressed-tensors' `pack-quantized`."""

    def pack(weight: Array, chance: np.random.Generator) -> Stored:
        groups = np.arange(weight.shape[1]) // group_size
        if is_ordered:
            groups = chance.permutation(groups)
        codes, zeros, scales = chosen(weight, groups.max() + 1, bits, chance)
        if is_symmetric:
            zeros[:] = 2 ** (bits - 1)
        tensors = {
            "weight_packed": words(codes, bits),
            "weight_scale": torch.from_numpy(scales).bfloat16(),
            "weight_shape": torch.tensor(weight.shape),
        }
        scales = tensors["weight_scale"].double().numpy()
        if not is_symmetric:
            tensors["weight_zero_point"] = words(zeros.T, bits).t()
        if is_ordered:
            tensors["weight_g_idx"] = torch.from_numpy(groups).int()
        return Stored(tensors, meant(codes, zeros, scales, groups))

    return pack


def int8_rows(weight: Array, chance: np.random.Generator) -> Stored:
    """compressed-tensors' `int-quantized`."""
    codes = chance.integers(-127, 128, weight.shape)
    scales = (chance.uniform(0.5, 1.5, (len(weight), 1)) * np.abs(weight).max() / 128).astype(np.float32)
    tensors = {"weight": torch.from_numpy(codes).to(torch.int8), "weight_scale": torch.from_numpy(scales)}
    return Stored(tensors, codes * scales.astype(np.float64))


def bitsandbytes_int8(weight: Array, chance: np.random.Generator) -> Stored:
    codes = chance.integers(-127, 128, weight.shape)
    largest = np.abs(weight).max(1).astype(np.float32)
    tensors = {
        "weight": torch.from_numpy(codes).to(torch.int8),
        "SCB": torch.from_numpy(largest),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return Stored(tensors, codes * (largest.astype(np.float64) / 127)[:, None])


# The 16 quantiles of a normal distribution, as the paper's appendix E prints them.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip


def nf4(block_size: int, *, is_nested: bool) -> Packer:
    def pack(weight: Array, chance: np.random.Generator) -> Stored:
        codes = chance.integers(0, 16, weight.size)
        num_blocks = weight.size // block_size
        state: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": block_size, "dtype": "bfloat16", "shape": list(weight.shape),
        }  # fmt: skip
        tensors = {
            "weight": torch.from_numpy((codes[0::2] << 4 | codes[1::2]).astype(np.uint8)).unsqueeze(1),
            "weight.quant_map": torch.tensor(NF4),
        }
        if is_nested:
            codes_of_scales = chance.integers(0, 256, num_blocks).astype(np.uint8)
            table = np.sort(chance.uniform(-1, 1, 256)).astype(np.float32)
            nested = chance.uniform(0.01, 0.02, -(-num_blocks // 256)).astype(np.float32)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0625}
            scales = table.astype(np.float64)[codes_of_scales] * np.repeat(nested, 256)[:num_blocks] + 0.0625
            tensors["weight.absmax"] = torch.from_numpy(codes_of_scales)
            tensors["weight.nested_absmax"] = torch.from_numpy(nested)
            tensors["weight.nested_quant_map"] = torch.from_numpy(table)
        else:
            absmax = chance.uniform(0.05, 0.2, num_blocks).astype(np.float32)
            scales = absmax.astype(np.float64)
            tensors["weight.absmax"] = torch.from_numpy(absmax)
        written = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        tensors["weight.quant_state.bitsandbytes__nf4"] = written
        table64 = np.array(NF4, np.float32).astype(np.float64)
        return Stored(tensors, (table64[codes] * np.repeat(scales, block_size)).reshape(weight.shape))

    return pack


def e4m3(byte: int) -> float:
    """The number that a byte stands for: one sign, four bits of exponent, three of fraction."""
    sign, exponent, fraction = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


def fp8(leaf: str, scales_of: Callable[[Array, np.random.Generator], tuple[Array, Array]]) -> Packer:
    """scales_of: as they are stored, and for each element."""

    def pack(weight: Array, chance: np.random.Generator) -> Stored:
        held = chance.integers(0, 256, weight.shape).astype(np.uint8)
        held[held & 127 == 127] = 0  # NaN
        stored, each = scales_of(weight, chance)
        tensors = {
            "weight": torch.from_numpy(held).view(torch.float8_e4m3fn),
            leaf: torch.from_numpy(stored),
        }
        numbers = np.array([e4m3(byte) for byte in range(256)])
        return Stored(tensors, numbers[held] * each.astype(np.float64))

    return pack


def in_blocks(rows: int, columns: int) -> Callable[[Array, np.random.Generator], tuple[Array, Array]]:
    def scales(weight: Array, chance: np.random.Generator) -> tuple[Array, Array]:
        shape = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        stored = chance.uniform(0.0005, 0.001, shape).astype(np.float32)
        each = stored[np.arange(weight.shape[0])[:, None] // rows, np.arange(weight.shape[1]) // columns]
        return stored, each

    return scales


def of_the_whole(weight: Array, chance: np.random.Generator) -> tuple[Array, Array]:
    stored = chance.uniform(0.0005, 0.001, ()).astype(np.float32)
    return np.asarray(stored), np.full(weight.shape, stored)


def of_each_output(weight: Array, chance: np.random.Generator) -> tuple[Array, Array]:
    stored = chance.uniform(0.0005, 0.001, (len(weight), 1)).astype(np.float32)
    return stored, np.broadcast_to(stored, weight.shape)
