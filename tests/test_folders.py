"""Folders as people have them, served whole: from words to words, the answer is that of `transformers`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from server.app import create_app
from server.engine.client import TokenStream
from server.engine.frames import WorkerConfig
from server.engine.request import GenerationRequest
from server.engine.worker import build_engine, load_model
from server.generation_config import read_generation_defaults
from server.settings import load_settings
from server.text.tokenizer import Tokenizer
from tests.model.families.checkpoints import FAMILIES, random_model, save, varied
from tests.server.fake_engine import FakeEngine
from tests.server.text import folders
from tests.server.text.folders import (
    ENDS,
    Builder,
    gpt2,
    mistral,
    phi3,
    qwen2,
    saved_byte_level,
    sentencepiece,
)
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

    with running(str(tmp_path), "--dtype", "float32", "--max-num-seqs", "2") as server:
        answer = server.generate({"inputs": PROMPT, "parameters": {"max_new_tokens": NUM_NEW}})
    assert_same_text(answer, model, tokenizer)


def assert_same_text(answer: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """The answer is what `transformers` writes, from the prompt's words to those of the text."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        # The mask, lest a padding token be masked.
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False
        )
    expected = written[0, ids.shape[1] :].tolist()
    details = answer["details"]
    assert details["input_length"] == ids.shape[1]
    assert [token["id"] for token in details["tokens"]] == expected
    text = tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert answer["generated_text"].strip() == text.strip()


class EngineHere(FakeEngine):
    """The engine of a folder, in this process."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = WorkerConfig(model_dir=str(folder), model_id="here", num_threads=1, max_num_seqs=2)
        model = load_model(config)
        self.info = model.info
        self.engine = build_engine(model, config)

    async def _generate(self, request: GenerationRequest, stream: TokenStream, stream_id: int) -> None:
        self.engine.add(stream_id, request)
        while self.engine.has_work:
            for _, output in self.engine.step():
                stream.put(output)
        self.live.discard(stream_id)


def answer_of(folder: Path) -> dict[str, Any]:
    """What the server's routes make of the folder, without its processes and sockets."""
    app = create_app(load_settings(), EngineHere(folder), Tokenizer(folder), read_generation_defaults(folder))
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": NUM_NEW, "details": True}}

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.post("/generate", json=body)

    response = asyncio.run(ask())
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


# Without bytes, which decode otherwise than the library's where they are partly characters.
LLAMAS = sentencepiece("bpe", "LlamaTokenizer", byte_fallback=False, vocab_size=200)
GEMMAS = folders.gemma(byte_fallback=False, vocab_size=200)
NEOX = saved_byte_level(tokenizer_class="GPTNeoXTokenizer")
COHERE = saved_byte_level(tokenizer_class="CohereTokenizerFast", **ENDS)
TOKENIZERS: dict[str, Builder] = {
    "openai-gpt": folders.openai_gpt,
    "bloom": saved_byte_level(tokenizer_class="BloomTokenizerFast"),
    "cohere": COHERE,
    "cohere2": COHERE,
    "gemma": GEMMAS,
    "gemma2": GEMMAS,
    "gemma3": GEMMAS,
    "gemma3_text": GEMMAS,
    "gpt2": saved_byte_level(tokenizer_class="GPT2TokenizerFast"),
    "gpt_neox": NEOX,
    "gptj": saved_byte_level(tokenizer_class="GPT2TokenizerFast", add_prefix_space=True),
    "llama": LLAMAS,
    "mistral": LLAMAS,
    "mixtral": LLAMAS,
    "olmo2": NEOX,
    "opt": saved_byte_level(tokenizer_class="GPT2TokenizerFast", bos_token="<s>", add_bos_token=True),
    "phi": saved_byte_level(tokenizer_class="CodeGenTokenizerFast"),
    "phi3": LLAMAS,
    "stablelm": NEOX,
}
OTHERS = saved_byte_level(tokenizer_class="PreTrainedTokenizerFast")


@pytest.mark.filterwarnings("ignore")  # those of transformers
@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_save_pretrained_writes_is_served_with_the_text_of_transformers(
    model_type: str, tmp_path: Path
) -> None:
    """Of every family, model and tokenizer, the end token included."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    TOKENIZERS.get(model_type, OTHERS)(Path(), source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    config = varied(model_type)[0]
    text_config = config.get_text_config()
    text_config.vocab_size = len(tokenizer)
    if getattr(text_config, "sliding_window", None) == 1:
        text_config.sliding_window = 7  # with 1, the cache of `transformers` keeps every key
    model = random_model(config, torch.float32, seed=3)
    save(model, folder, torch.float32)
    assert_same_text(answer_of(folder), model, tokenizer)
