"""Model folders as the loader finds them: small, whole, and to be spoilt by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.checkpoint import INDEX, WEIGHTS
from model.decoder import Decoder
from model.families.verbatim import decoder_config
from tests.model.decoders import random_decoder

CONFIG: dict[str, Any] = {
    "model_type": "verbatim",
    "dtype": "float32",
    "eos_token_id": 0,
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_size": 48,
    "max_positions": 128,
    "positions": "sinusoidal",
    "embedding_scale": 4.0,
    "norm": "layer_norm",
    "norm_placement": "post",
    "activation": "gelu",
    "attention_bias": True,
    "feed_forward_bias": True,
    "tie_word_embeddings": True,
}


def stored_tensors(decoder: Decoder) -> dict[str, torch.Tensor]:
    """What a checkpoint holds: each parameter once."""
    return {name: tensor.clone() for name, tensor in decoder.named_parameters()}


def write_folder(folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Decoder:
    """Write a whole model folder; returns the decoder that it holds."""
    config = CONFIG | changes
    decoder = random_decoder(decoder_config(config), dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored_tensors(decoder), folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    byte_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    return decoder


def shard(folder: Path) -> None:
    """The same weights in two files and an index, the names in order."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """An end token, the 256 bytes, and nothing that joins them; the other ids are unused."""
    assert vocab_size >= 257
    vocab = {"<|end|>": 0} | {
        piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)
    }
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
