"""Tokenizer folders of each kind that people have, written from the shared data or trained on the spot.

Each builder writes one folder's files, so that ours and transformers' own reading of it can be compared.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "Once upon a time there was a fox, and the fox was not afraid of the wood.",
    "It didn't rain; she said: \"I've 1,234 apples!\" They're red, aren't they?",
    "Grüße aus Köln, où l'été est né. Ähm… Привет, мир! 東京 and こんにちは.",
    "def f(x):\n    return x * 2  # twice\n\n\tdone <b>bold</b> {json: [1, 2]}",
]

Builder = Callable[[Path, Path], None]


def write(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")


def gpt2(**config: Any) -> Builder:
    def build(data: Path, folder: Path) -> None:
        shutil.copy(data / "tokenizers/gpt2/vocab.json", folder / "vocab.json")
        shutil.copy(data / "tokenizers/gpt2/vocab.bpe", folder / "merges.txt")
        write(folder, "config.json", {"model_type": "gpt2"})
        if config:
            write(folder, "tokenizer_config.json", config)

    return build


def qwen2(data: Path, folder: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(data / "tokenizers/qwen2" / name, folder / name)


def phi3(**changes: Any) -> Builder:
    def build(data: Path, folder: Path) -> None:
        shutil.copy(data / "tokenizers/phi-3-mini/tokenizer.json", folder / "tokenizer.json")
        config = json.loads((data / "tokenizers/phi-3-mini/tokenizer_config.json").read_text())
        write(folder, "tokenizer_config.json", config | changes)

    return build


def mistral(**config: Any) -> Builder:
    def build(data: Path, folder: Path) -> None:
        shutil.copy(
            data / "tokenizers/mistral_instruct_tokenizer_240323.model.v3", folder / "tokenizer.model"
        )
        write(folder, "config.json", {"model_type": "mistral"})
        if config:
            write(folder, "tokenizer_config.json", config)

    return build


def llama3_ranks(data: Path, folder: Path) -> None:
    """Ranks under SentencePiece's name, as Meta gives them; here those of GPT-2."""
    (folder / "tokenizer.model").write_bytes(ranks_of(data / "tokenizers/gpt2/vocab.json"))
    write(
        folder,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "additional_special_tokens": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        },
    )


def ranks_of(vocab_path: Path) -> bytes:
    """A byte-level vocabulary as tiktoken has it: a token in base64 and its rank on each line."""
    vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
    alphabet = byte_alphabet()
    lines = [
        base64.b64encode(bytes(alphabet[character] for character in token)) + f" {rank}\n".encode()
        for token, rank in sorted(vocab.items(), key=lambda item: item[1])
        if token != "<|endoftext|>"
    ]
    return b"".join(lines)


def byte_alphabet() -> dict[str, int]:
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def saved_byte_level(**config: Any) -> Builder:
    """A tokenizer.json whose pre-tokenizer adds a space, and whose post-processor may be overruled."""

    def build(data: Path, folder: Path) -> None:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>", "<s>", "</s>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        backend.train_from_iterator(SENTENCES, trainer)
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        backend.save(str(folder / "tokenizer.json"))
        write(folder, "tokenizer_config.json", config)

    return build


def older_added(data: Path, folder: Path) -> None:
    """Before `added_tokens_decoder`: special_tokens_map.json and added_tokens.json."""
    saved_byte_level(tokenizer_class="GPT2Tokenizer", bos_token="<s>")(data, folder)
    write(folder, "special_tokens_map.json", {
        "eos_token": {"content": "</s>", "lstrip": True, "rstrip": False, "normalized": False,
                      "single_word": False},
        "pad_token": "<pad>",
        "additional_special_tokens": ["<|im_start|>"],
    })  # fmt: skip
    size = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    write(folder, "added_tokens.json", {"<pad>": size, "<|im_start|>": size + 1, "<think>": size + 2})


def openai_gpt(data: Path, folder: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.model.save(str(folder))
    write(folder, "config.json", {"model_type": "openai-gpt"})


def sentencepiece(model_type: str, kind: str, **options: Any) -> Builder:
    """A small SentencePiece model; transformers reads it as `kind`."""

    def build(data: Path, folder: Path) -> None:
        import sentencepiece as library

        written = io.BytesIO()
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3), model_writer=written, model_type=model_type,
            **{"vocab_size": 340, "byte_fallback": True, "minloglevel": 9} | options,
        )  # fmt: skip
        (folder / "tokenizer.model").write_bytes(written.getvalue())
        write(folder, "tokenizer_config.json", {"tokenizer_class": kind} if kind else {})

    return build


def gemma(**options: Any) -> Builder:
    return sentencepiece(
        "bpe", "GemmaTokenizer", pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n\n"],
        **options,
    )  # fmt: skip


def with_decoder(model: Any, decoder: Any, pre_tokenizer: Any, trainer: Any) -> Builder:
    def build(data: Path, folder: Path) -> None:
        backend = tokenizers.Tokenizer(model())
        backend.pre_tokenizer = pre_tokenizer
        if decoder is not None:
            backend.decoder = decoder
        backend.train_from_iterator(SENTENCES, trainer)
        backend.add_special_tokens(["<sep>"])
        backend.save(str(folder / "tokenizer.json"))
        write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})

    return build


ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BUILDERS: dict[str, Builder] = {
    "gpt2": gpt2(),
    "gpt2, as OPT has it": gpt2(
        tokenizer_class="GPT2Tokenizer", add_bos_token=True, add_prefix_space=False,
        bos_token={"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False,
                   "normalized": True, "single_word": False},
        eos_token="</s>", unk_token="</s>", pad_token="<pad>",
    ),
    "gpt2 with a prefix space": gpt2(tokenizer_class="GPT2TokenizerFast", add_prefix_space=True),
    "qwen2": qwen2,
    "phi-3": phi3(),
    "phi-3 between BOS and EOS": phi3(add_bos_token=True, add_eos_token=True),
    "phi-3 of no class": phi3(tokenizer_class="PreTrainedTokenizerFast", add_bos_token=True),
    "mistral": mistral(),
    "mistral, not legacy": mistral(tokenizer_class="LlamaTokenizer", legacy=False),
    "mistral without a prefix space": mistral(
        tokenizer_class="LlamaTokenizer", legacy=False, add_prefix_space=False, add_eos_token=True
    ),
    "llama 3, as ranks": llama3_ranks,
    "byte-level": saved_byte_level(tokenizer_class="PreTrainedTokenizerFast"),
    "byte-level with its space": saved_byte_level(
        tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True, split_special_tokens=True
    ),
    "byte-level with other flags": saved_byte_level(
        tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>",
        added_tokens_decoder={
            "1": {"content": "<s>", "special": False, "lstrip": True, "normalized": True},
            "2": {"content": "</s>", "special": True, "rstrip": True, "normalized": False},
        },
    ),
    "gpt-neox": saved_byte_level(tokenizer_class="GPTNeoXTokenizer", add_bos_token=True),
    "cohere": saved_byte_level(tokenizer_class="CohereTokenizerFast", **ENDS),
    "older added tokens": older_added,
    "openai-gpt": openai_gpt,
    "llama of a small bpe": sentencepiece("bpe", "LlamaTokenizer"),
    "llama of a small unigram": sentencepiece("unigram", "LlamaTokenizer"),
    "gemma": gemma(),
    "metaspace": with_decoder(
        models.Unigram, decoders.Metaspace(), pre_tokenizers.Metaspace(),
        trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"],
                                show_progress=False),
    ),
    "wordpiece": with_decoder(
        lambda: models.WordPiece(unk_token="[UNK]"), decoders.WordPiece(), pre_tokenizers.Whitespace(),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
    ),
    "words without a decoder": with_decoder(
        lambda: models.WordLevel(unk_token="[UNK]"), None, pre_tokenizers.Whitespace(),
        trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False),
    ),
}  # fmt: skip
