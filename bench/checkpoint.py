"""Writes a checkpoint of a real model's shape with random weights: for speed, its words do not matter.

`python -m bench.checkpoint 1.1b DIR`. The folder is one that other engines load, too. Written tensor by
tensor, so that memory holds the largest of them alone; the same seed, the same bytes. Knows no decoder.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPREAD = 0.02  # the standard deviation of a weight: activations and logits stay small
END = "<|end|>"  # token 0


def _shape(
    hidden: int, layers: int, heads: tuple[int, int], ff: int, vocab: int, tied: bool
) -> dict[str, Any]:
    num_heads, num_kv_heads = heads
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "1.1b": _shape(2048, 22, (32, 4), 5632, 32_000, tied=False),
    "125m": _shape(576, 30, (9, 3), 1536, 49_152, tied=True),
    "12m": _shape(256, 8, (4, 2), 1024, 8_192, tied=False),
}


def config(shape: str) -> dict[str, Any]:
    """The `config.json` of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SHAPES[shape],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def tensor_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Each tensor of a Llama, by its name in the file."""
    hidden, ff, vocab = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": [vocab, hidden]}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": [hidden],
            "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "post_attention_layernorm": [hidden],
            "mlp.gate_proj": [ff, hidden],
            "mlp.up_proj": [ff, hidden],
            "mlp.down_proj": [hidden, ff],
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    shapes["model.norm.weight"] = [hidden]
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [vocab, hidden]
    return shapes


def write_weights(path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    """A safetensors file in bfloat16: norms of ones, and normal weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write(_drawn(shape, generator).view(torch.uint8).numpy().data)


def _drawn(shape: list[int], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, SPREAD, generator=generator)


def tokenizer(vocab_size: int) -> Tokenizer:
    """Token 0 ends a text; then all bytes, then pairs of bytes: as many as there is room for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(alphabet, repeat=2), vocab_size - len(alphabet) - 1))
    words = [END, *alphabet, *("".join(pair) for pair in pairs)]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


def write(shape: str, folder: Path, seed: int = 0) -> None:
    """The whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    about = config(shape)
    write_weights(folder / "model.safetensors", tensor_shapes(about), seed)
    tokenizer(about["vocab_size"]).save(str(folder / "tokenizer.json"))
    of_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": about["max_position_embeddings"],
    }
    for name, content in {"config.json": about, "tokenizer_config.json": of_tokenizer}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main(
    shape: Annotated[str, typer.Argument(help=", ".join(SHAPES))],
    folder: Path,
    seed: Annotated[int, typer.Option(help="the same seed, the same bytes")] = 0,
) -> None:
    """Write the folder."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"must be one of {', '.join(SHAPES)}")
    write(shape, folder, seed)


if __name__ == "__main__":
    typer.run(main)
