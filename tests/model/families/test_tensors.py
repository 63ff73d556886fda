"""Checkpoints as older writers left them: without the prefix, with constants, or with the tied output too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from model.folder import LoadError
from model.loader import load, open_folder
from tests.model.decoders import random_ids, whole
from tests.model.families.checkpoints import random_model, save

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers
Tensors = dict[str, torch.Tensor]

LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64, "eos_token_id": 2,
}  # fmt: skip


def logits(folder: Path) -> torch.Tensor:
    return whole(load(open_folder(folder)).decoder, random_ids(20, 40, seed=1))


def write(folder: Path, model_type: str, fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model(model_type, **fields)
    save(random_model(config, torch.float32, seed=3), folder, torch.float32)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def as_gpt2_was_published(tensors: Tensors) -> Tensors:
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return masks | {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def as_llama_was_published(tensors: Tensors) -> Tensors:
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3) for i in range(2)}
    return tensors | more | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize(
    ("model_type", "fields", "change"),
    [("gpt2", GPT2, as_gpt2_was_published), ("llama", LLAMA, as_llama_was_published)],
    ids=["gpt2", "llama"],
)
def test_what_older_writers_left_is_taken(
    tmp_path: Path, model_type: str, fields: dict[str, Any], change: Callable[[Tensors], Tensors]
) -> None:
    write(tmp_path, model_type, fields)
    before = logits(tmp_path)
    rewrite(tmp_path, change)
    assert torch.equal(logits(tmp_path), before)


def test_shards_as_transformers_writes_them_are_taken(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **LLAMA)
    model = random_model(config, torch.float32, seed=3)
    save(model, tmp_path / "whole", torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "shards"), logits(tmp_path / "whole"))


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def shortened(wanted: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: tensor[:-1].clone() if name == wanted else tensor for name, tensor in tensors.items()
    }


QKV, FUSED = (
    "model.layers.1.self_attn.qkv_proj.weight",
    "transformer.h.1.self_attention.query_key_value.weight",
)


@pytest.mark.parametrize(
    ("model_type", "fields", "change", "message"),
    [
        (
            "llama",
            LLAMA,
            renamed("layers.1.mlp.up", "layers.1.mlp.down_up"),
            "mlp.down_up_proj.weight' has no",
        ),
        ("llama", LLAMA, renamed("model.layers.1.", "model.layers.7."), "'model.layers.7.*' has no place"),
        ("llama", LLAMA, renamed("model.norm", "final_norm"), "'final_norm.weight' has no place"),
        (
            "phi3",
            LLAMA,
            shortened(QKV),
            rf"tensor '{QKV}' has shape \[47, 24\], which does not fit: .* sum exactly to 47",
        ),
        (
            "bloom",
            {
                "vocab_size": 40,
                "hidden_size": 24,
                "n_layer": 2,
                "n_head": 3,
                "seq_length": 64,
                "eos_token_id": 2,
            },
            shortened(FUSED),
            rf"tensor '{FUSED}' has shape \[71, 24\], which does not fit: .*\[3, 3, 8, 24\]",
        ),
    ],
)
def test_a_tensor_without_a_place_or_of_another_shape_is_named(
    tmp_path: Path,
    model_type: str,
    fields: dict[str, Any],
    change: Callable[[Tensors], Tensors],
    message: str,
) -> None:
    write(tmp_path, model_type, fields)
    rewrite(tmp_path, change)
    with pytest.raises(LoadError, match=message):
        logits(tmp_path)
