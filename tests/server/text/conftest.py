"""The five vocabularies on which decoding must be exact, each as a model folder and as the library has it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tokenizers

from server.text.tokenizer import Tokenizer
from server.text.tokenizer_files import load_backend
from tests.server.text.folders import mistral

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Vocabulary:
    name: str
    tokenizer: Tokenizer
    library: tokenizers.Tokenizer
    special_ids: tuple[int, ...] = field(repr=False)
    byte_ids: tuple[int, ...] = field(repr=False)  # the token of each byte

    @property
    def falls_back_to_bytes(self) -> bool:
        """Whether bytes are tokens beside those of characters, as in SentencePiece."""
        return self.name in ("phi-3", "mistral")

    def whole(self, ids: list[int]) -> str:
        """What the library makes of the ids at once."""
        text: str = self.library.decode(ids, skip_special_tokens=True)
        return text


def build_byte_level(folder: Path, merges_name: str, special: list[str]) -> str:
    """A tokenizer.json from the vocabulary and merges that GPT-2's and Qwen2's first releases come with."""
    lines = (folder / merges_name).read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(special)
    text: str = library.to_str()
    return text


class Vocabularies(dict[str, Vocabulary]):
    """By name; a test that asks for one that is not there is skipped."""

    def __missing__(self, name: str) -> Vocabulary:
        pytest.skip("needs ../shared/data beside the checkout")


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    """The embedded model's own always, the others where their data is."""
    sources = {"storyteller": (ROOT / "weights/tokenizer.json").read_text(encoding="utf-8")}
    folder = ROOT.parent / "shared/data/tokenizers"
    if folder.is_dir():
        sources |= {
            "gpt2": build_byte_level(folder / "gpt2", "vocab.bpe", ["<|endoftext|>"]),
            "qwen2": build_byte_level(folder / "qwen2", "merges.txt", ["<|endoftext|>", "<|im_end|>"]),
            "phi-3": (folder / "phi-3-mini/tokenizer.json").read_text(encoding="utf-8"),
        }
    result = Vocabularies()
    for name, source in sources.items():
        model_folder = tmp_path_factory.mktemp(name)
        (model_folder / "tokenizer.json").write_text(source, encoding="utf-8")
        result[name] = vocabulary_of(name, model_folder, tokenizers.Tokenizer.from_str(source))
    if folder.is_dir():
        model_folder = tmp_path_factory.mktemp("mistral")
        mistral()(folder.parent, model_folder)
        result["mistral"] = vocabulary_of("mistral", model_folder, load_backend(model_folder)[0])
    return result


def vocabulary_of(name: str, model_folder: Path, library: tokenizers.Tokenizer) -> Vocabulary:
    tokenizer = Tokenizer(model_folder)
    ids = range(tokenizer.vocab_size)
    return Vocabulary(
        name,
        tokenizer,
        library,
        special_ids=tuple(i for i in ids if tokenizer.is_special(i)),
        byte_ids=tuple(sorted((i for i in ids if is_one_byte(tokenizer, i)), key=tokenizer.piece)),
    )


def is_one_byte(tokenizer: Tokenizer, token_id: int) -> bool:
    piece = tokenizer.piece(token_id)
    return isinstance(piece, bytes) and len(piece) == 1


@pytest.fixture(params=["storyteller", "gpt2", "qwen2", "phi-3", "mistral"])
def vocabulary(request: pytest.FixtureRequest, vocabularies: Vocabularies) -> Vocabulary:
    return vocabularies[request.param]
