"""A Llama checkpoint as a GGUF file in bfloat16, tensor by tensor. Knows nothing of what reads it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write_llama(checkpoint: Path, path: Path) -> None:
    """From a folder with config.json, tokenizer.json and one model.safetensors in bfloat16."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, config)
    _add_vocabulary(writer, checkpoint, config)
    file = checkpoint / "model.safetensors"
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            held = np.memmap(file, np.uint16, "r", 8 + length + begin, ((end - begin) // 2,))
            _add(writer, name, held.reshape(about["shape"]), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, bits: np.ndarray, config: dict[str, int]) -> None:
    bare = name.removesuffix(".weight")
    if bare in NAMES:
        ours = f"{NAMES[bare]}.weight"
    else:
        layer, _, part = bare.removeprefix("model.layers.").partition(".")
        ours = f"blk.{layer}.{NAMES[part]}.weight"
    if bits.ndim == 1:
        writer.add_tensor(ours, (bits.astype(np.uint32) << 16).view(np.float32))
        return
    for kind, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if kind in name:  # it turns pairs (2i, 2i + 1), the checkpoint (i, i + half)
            halves = bits.reshape(config[heads], 2, -1, bits.shape[1])
            bits = halves.swapaxes(1, 2).reshape(bits.shape)
    writer.add_tensor(ours, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, int]) -> None:
    model = json.loads((checkpoint / "tokenizer.json").read_text())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")  # it must be a name that is known
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(words) - 1))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
