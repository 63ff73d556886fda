"""Folders as people have them, served whole: from words to words, the answer is that of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from tests.model.families.checkpoints import random_model, save
from tests.server.text.folders import Builder, gpt2, mistral, phi3, qwen2
from tests.whole import running

PROMPT = "Es war einmal — once upon a time, in 1812:\n\t“naïve” 狐 🦊"
NUM_NEW = 64
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2_SIZES: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
FOLDERS: dict[str, tuple[Builder, str, dict[str, Any]]] = {
    "gpt2": (gpt2(), "gpt2", GPT2_SIZES),
    "qwen2": (qwen2, "qwen2", SIZES),
    "phi3": (phi3(), "phi3", SIZES | {"pad_token_id": 0}),
    "mistral": (mistral(tokenizer_class="LlamaTokenizer"), "mistral", SIZES | {"sliding_window": 32}),
}


@pytest.mark.filterwarnings("ignore")  # those of transformers
@pytest.mark.parametrize(("build_tokenizer", "model_type", "sizes"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_served_with_the_text_of_transformers(
    build_tokenizer: Builder, model_type: str, sizes: dict[str, Any], shared_data: Path, tmp_path: Path
) -> None:
    build_tokenizer(shared_data, tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')  # which AutoTokenizer reads
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes)
    config.eos_token_id = None
    model = random_model(config, torch.float32, seed=3)
    save(model, tmp_path, torch.float32)

    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model.generate(ids, max_new_tokens=NUM_NEW, do_sample=False)[0, ids.shape[1] :].tolist()
    with running(str(tmp_path), "--dtype", "float32", "--max-num-seqs", "2") as server:
        answer = server.generate({"inputs": PROMPT, "parameters": {"max_new_tokens": NUM_NEW}})
    details = answer["details"]
    assert details["input_length"] == ids.shape[1]
    assert [token["id"] for token in details["tokens"]] == expected
    text = tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert answer["generated_text"].strip() == text.strip()
