"""A model folder -> the library's tokenizer, whichever of the usual files the folder has.

Decides how vocabularies of each kind are put together, so that a text becomes the ids that transformers 4
gives it. Knows nothing of decoding.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from server.text.encoder import ANY_TEXT, is_failure, is_tame
from server.text.links import read_inside
from server.text.sentencepiece_model import SPACES_PATTERN, merges_of
from server.text.sentencepiece_model import Model as SentencePieceModel
from server.text.sentencepiece_model import build as build_sentencepiece
from server.text.spelling import byte_level_alphabet
from server.text.tokenizer_config import TokenizerConfig, read_tokenizer_config

_SPLITS_NUMBERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = _SPLITS_NUMBERS % ""
CL100K_PATTERN = _SPLITS_NUMBERS % "{1,3}"
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_O200K_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
_O200K_PATTERN = (
    "|".join(_O200K_WORD % counts + r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for counts in (("*", "+"), ("+", "*")))
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What is known to take a time that a text's length bounds: those above, and SentencePiece's.
KNOWN_PATTERNS = (QWEN2_PATTERN, CL100K_PATTERN, _GPT2_PATTERN, _O200K_PATTERN, SPACES_PATTERN)
_GIT_LFS = b"version https://git-lfs"
_MAX_TOKEN_ID = 2**24  # ids of no model come near it; a table is made of them


@dataclass(frozen=True, slots=True)
class _Tiktoken:
    """What a file of ranks leaves to its name: how a text is cut, and the tokens that stand for no text."""

    pattern: str
    special: Mapping[str, int]


_TIKTOKEN = {
    "r50k_base": _Tiktoken(_GPT2_PATTERN, {"<|endoftext|>": 50_256}),
    "p50k_base": _Tiktoken(_GPT2_PATTERN, {"<|endoftext|>": 50_256}),
    "cl100k_base": _Tiktoken(
        CL100K_PATTERN,
        {
            "<|endoftext|>": 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260, "<|endofprompt|>": 100_276,
        },
    ),
    "o200k_base": _Tiktoken(_O200K_PATTERN, {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}),
    "qwen": _Tiktoken(
        QWEN2_PATTERN,
        {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
        | {f"<|extra_{n}|>": 151_646 + n for n in range(205)},
    ),
}  # fmt: skip


def load_backend(folder: Path) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    """The tokenizer of a folder and what its JSON files say of it; raises `ValueError` naming file and cause.

    In this order: tokenizer.json, tokenizer.model (SentencePiece, or ranks as Llama 3 has them), vocab.json
    with merges.txt, *.tiktoken. Truncation, padding and BPE dropout set in a file are switched off.
    """
    config = read_tokenizer_config(folder)
    path, read = _find(folder, config)
    try:
        backend = read(path, config)
        _add_tokens(backend, config)
        if read is not _read_whole:  # whose ids are its own
            _check_ids(backend, config)
        _set_prefix_space(backend, config)
        _set_bos_eos(backend, config)
        if (largest := max(backend.get_vocab().values(), default=0)) > _MAX_TOKEN_ID:
            raise ValueError(f"it has the token id {largest}, at most {_MAX_TOKEN_ID} are taken")
        if is_tame(backend, KNOWN_PATTERNS):  # else whoever runs it elsewhere tries it there
            backend.encode_batch([ANY_TEXT])
    except BaseException as error:
        if is_failure(error):
            raise ValueError(f"cannot load {path}: {_one_line(error)}") from error
        raise
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(config.fields.get("split_special_tokens"))
    if isinstance(backend.model, models.BPE):
        backend.model.dropout = None
    return backend, config


_Reader = Callable[[Path, TokenizerConfig], tokenizers.Tokenizer]


def _find(folder: Path, config: TokenizerConfig) -> tuple[Path, _Reader]:
    whole = folder / "tokenizer.json"
    sentencepiece = sorted(folder.glob("tokenizer.model*"))
    # As transformers: a prefix space that is asked for is not in the file, which was made with the other one.
    is_made_anew = config.kind == "LlamaTokenizer" and config.fields.get("add_prefix_space") is not None
    if whole.is_file() and not (is_made_anew and sentencepiece):
        return whole, _read_whole
    if sentencepiece:
        return sentencepiece[0], _read_model
    if (folder / "vocab.json").is_file():
        return folder / "vocab.json", _read_vocabulary
    if ranks := sorted(folder.glob("*.tiktoken")):
        return ranks[0], _read_tiktoken
    raise ValueError(
        f"cannot load {whole}: there is no such file, nor a tokenizer.model, a vocab.json with merges.txt "
        "or a *.tiktoken beside it"
    )


def _read(path: Path) -> bytes:
    data = read_inside(path)
    if data.startswith(_GIT_LFS):
        raise ValueError("it is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    return data


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ---- one reader for each kind of file ----------------------------------------------------------------------


def _read_whole(path: Path, config: TokenizerConfig) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(_read(path).decode("utf-8"))


def _read_model(path: Path, config: TokenizerConfig) -> tokenizers.Tokenizer:
    data = _read(path)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", data):  # ranks, under a name that SentencePiece made common
        return _of_ranks(data, _Tiktoken(CL100K_PATTERN, {}), config)
    return build_sentencepiece(SentencePieceModel.read(data), config)


def _read_tiktoken(path: Path, config: TokenizerConfig) -> tokenizers.Tokenizer:
    if path.stem not in _TIKTOKEN:
        raise ValueError(
            f"how a text is cut is not in the file, and known of {', '.join(sorted(_TIKTOKEN))} alone: "
            "a tokenizer.json would say it"
        )
    return _of_ranks(_read(path), _TIKTOKEN[path.stem], config)


def _read_vocabulary(path: Path, config: TokenizerConfig) -> tokenizers.Tokenizer:
    vocab = json.loads(_read(path))
    try:
        beside = _read(path.with_name("merges.txt"))
    except ValueError as error:
        raise ValueError(f"merges.txt {error}") from error
    merges = list(_merges(beside.decode("utf-8")))
    if config.kind == "OpenAIGPTTokenizer":
        model = models.BPE(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False)
        backend = tokenizers.Tokenizer(model)
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.BPEDecoder(suffix="</w>")
        return backend
    has_space = bool(config.fields.get("add_prefix_space"))
    if config.kind == "Qwen2Tokenizer":
        backend = _byte_level(models.BPE(vocab, merges), QWEN2_PATTERN, has_space)
        backend.normalizer = normalizers.NFC()
        return backend
    if config.kind not in ("GPT2Tokenizer", "CodeGenTokenizer"):
        raise ValueError(
            "how a text is cut is not in the file, and the tokenizer_class is "
            f"{config.kind or 'nowhere named'}, not GPT2Tokenizer, CodeGenTokenizer, Qwen2Tokenizer or "
            "OpenAIGPTTokenizer: a tokenizer.json would say it"
        )
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n")):
        if (number == 0 and line.startswith("#version")) or not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ValueError(f"merges.txt has {line[:100]!r} in line {number + 1}, not two tokens")
        yield parts[0], parts[1]


def _of_ranks(data: bytes, kind: _Tiktoken, config: TokenizerConfig) -> tokenizers.Tokenizer:
    spelled = {byte: character for character, byte in byte_level_alphabet().items()}
    vocab: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            vocab["".join(spelled[byte] for byte in base64.b64decode(token, validate=True))] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is not a token in base64 and its rank") from None
    merges = merges_of(vocab, sorted(vocab, key=vocab.__getitem__))
    special = {} if config.added else kind.special
    taken = set(vocab.values())
    # In the vocabulary, since only there an id may follow a gap.
    vocab |= {content: token_id for content, token_id in special.items() if token_id not in taken}
    vocab |= {str(token): token_id for token_id, token in config.added.items()}
    backend = _byte_level(models.BPE(vocab, merges, ignore_merges=True), kind.pattern, has_space=False)
    backend.add_special_tokens([AddedToken(content, normalized=False) for content in special])
    return backend


def _byte_level(model: models.Model, pattern: str, has_space: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=has_space, use_regex=False),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    return backend


# ---- what the other files change in it ---------------------------------------------------------------------


def _add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Add the tokens of tokenizer_config.json and the special ones, each with its flags, in one order."""
    present = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    special = [t for value in config.roles.values() for t in (value if isinstance(value, list) else [value])]
    special_contents = {str(token) for token in special}
    new = [token for _, token in sorted(config.added.items()) if repr(token) not in present]
    contents = {str(token) for token in [*backend.get_added_tokens_decoder().values(), *new]}
    for token in special:
        if str(token) not in contents:
            contents.add(str(token))
            new.append(token if isinstance(token, AddedToken) else AddedToken(token, special=True))
    for token in new:
        token.special = token.special or str(token) in special_contents
    backend.add_tokens([token for token in new if str(token)])


def _check_ids(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    for token_id, token in config.added.items():
        if (found := backend.token_to_id(str(token))) != token_id:
            raise ValueError(
                f"tokenizer_config.json gives {str(token)!r:.100} the id {token_id}, the vocabulary {found}"
            )


def _set_prefix_space(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """The flag of tokenizer_config.json, or its absence, overrules that of the vocabulary's file."""
    wanted = config.fields.get("add_prefix_space", False)
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        with contextlib.suppress(TypeError):  # null, with which transformers leaves it as it is
            backend.pre_tokenizer.add_prefix_space = wanted


def _set_bos_eos(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    bos_eos = config.bos_eos
    if config.kind == "GPT2Tokenizer" and backend.post_processor is None:
        bos_eos = (bool(config.fields.get("add_bos_token")), False)
    if bos_eos is None:
        return
    template, used = ["$A:0"], []
    for is_wanted, role, place in zip(bos_eos, ("bos_token", "eos_token"), (0, 2), strict=True):
        if is_wanted:
            if role not in config.roles:
                raise ValueError(f"tokenizer_config.json has add_{role}, and no {role}")
            content = str(config.roles[role])
            template.insert(place, f"{content}:0")
            used.append((content, backend.token_to_id(content)))
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
