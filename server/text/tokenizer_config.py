"""What a folder's JSON files say about its tokenizer: its class, its special and added tokens, its flags.

Decides which file and which default counts, as transformers 4 does. Knows nothing of vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from server.text.links import read_inside

ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens",
)  # fmt: skip
_END_OF_TEXT = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_INFILLING = ["\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>"]
# The special tokens of a class, unless the folder says otherwise.
_OF_CLASS: dict[str, dict[str, Any]] = {
    "BloomTokenizer": _LLAMA | {"pad_token": "<pad>"},
    "CodeGenTokenizer": _END_OF_TEXT,
    "CodeLlamaTokenizer": _LLAMA | {"additional_special_tokens": _INFILLING},
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>",
    },
    "GemmaTokenizer": {
        "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
    },
    "GPT2Tokenizer": _END_OF_TEXT,
    "GPTNeoXTokenizer": _END_OF_TEXT,
    "LlamaTokenizer": _LLAMA,
    "OpenAIGPTTokenizer": {"unk_token": "<unk>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}  # fmt: skip
# Classes that put BOS and EOS around a text by these flags of theirs, whatever a tokenizer.json says.
_BOS_EOS = {
    "CodeLlamaTokenizer": (True, False),
    "CohereTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "GPTNeoXTokenizer": (False, False),
    "LlamaTokenizer": (True, False),
}
# By the `model_type` of a config.json, where no file names a class.
_OF_MODEL = {
    "bloom": "BloomTokenizer", "codegen": "CodeGenTokenizer", "cohere": "CohereTokenizer",
    "cohere2": "CohereTokenizer", "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer", "gpt2": "GPT2Tokenizer",
    "gpt_bigcode": "GPT2Tokenizer", "gpt_neo": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer",
    "gptj": "GPT2Tokenizer", "granite": "GPT2Tokenizer", "granitemoe": "GPT2Tokenizer",
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "mixtral": "LlamaTokenizer",
    "olmo": "GPTNeoXTokenizer", "olmo2": "GPTNeoXTokenizer", "openai-gpt": "OpenAIGPTTokenizer",
    "opt": "GPT2Tokenizer", "phi": "CodeGenTokenizer", "phi3": "LlamaTokenizer",
    "qwen2": "Qwen2Tokenizer", "qwen2_moe": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer", "stablelm": "GPTNeoXTokenizer", "starcoder2": "GPT2Tokenizer",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What is known before the vocabulary is read."""

    kind: str  # the tokenizer's class, without `Fast`; empty if no file names one
    fields: Mapping[str, Any]  # tokenizer_config.json
    roles: Mapping[str, str | AddedToken | list[str | AddedToken]]
    added: Mapping[int, AddedToken]

    @property
    def special_tokens(self) -> dict[str, str | list[str]]:
        """By their roles, as chat templates name them: `bos_token`, `eos_token` and so on."""
        return {
            role: [str(token) for token in value] if isinstance(value, list) else str(value)
            for role, value in self.roles.items()
            if value
        }

    @property
    def bos_eos(self) -> tuple[bool, bool] | None:
        """Whether a text begins with BOS and ends with EOS; None: as the tokenizer itself has it."""
        if self.kind not in _BOS_EOS:
            return None
        bos, eos = _BOS_EOS[self.kind]
        return bool(self.fields.get("add_bos_token", bos)), bool(self.fields.get("add_eos_token", eos))


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read tokenizer_config.json, special_tokens_map.json, added_tokens.json; raises `ValueError`."""
    path = folder / "tokenizer_config.json"
    fields = read_json(path) if path.is_file() else {}
    kind = _kind(folder, fields)
    try:
        roles: dict[str, Any] = dict(_OF_CLASS.get(kind, {}))
        roles |= {role: fields[role] for role in ROLES if role in fields}
        extra = fields.get("extra_special_tokens") or {}
        if isinstance(extra, Mapping):
            roles |= extra
        if "added_tokens_decoder" in fields:
            added = {int(i): _added(token) for i, token in fields["added_tokens_decoder"].items()}
        else:
            path = folder / "special_tokens_map.json"
            roles |= _older_roles(path, roles) if path.is_file() else {}
            _check(roles)
            path = folder / "added_tokens.json"
            added = dict(_older_added(path, roles)) if path.is_file() else {}
        _check(roles)
        by_content = {token.content: token for token in added.values()}
        return TokenizerConfig(kind, fields, dict(_with_flags(roles, by_content)), added)
    except (TypeError, AttributeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"cannot load {path}: {type(error).__name__}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a file; raises `ValueError` naming the file and the cause."""
    try:
        content = read_inside(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error  # in the loader's words
    except OSError as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"cannot load {path}: it must hold an object, not a {type(data).__name__}")
    return data


def _kind(folder: Path, fields: Mapping[str, Any]) -> str:
    kind = fields.get("tokenizer_class")
    if kind is None and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        kind = config.get("tokenizer_class") or _OF_MODEL.get(str(config.get("model_type")))
    return str(kind or "").removesuffix("Fast")


def _added(token: Mapping[str, Any]) -> AddedToken:
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{name: token[name] for name in known if name in token})


def _older_roles(path: Path, roles: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Before there was `added_tokens_decoder`, special_tokens_map.json had the last word."""
    for role, value in read_json(path).items():
        if isinstance(value, list):
            before = list(roles.get(role) or [])
            yield role, before + [token for token in value if token not in before]
        else:
            yield role, value


def _check(roles: Mapping[str, Any]) -> None:
    for role, value in roles.items():
        for token in value if isinstance(value, list) else [value]:
            if not isinstance(token, str | None) and not isinstance(_content(token), str):
                raise TypeError(f"{role} must be a string or an object with a content, not {token!r:.100}")


def _older_added(path: Path, roles: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    special = set()
    for value in roles.values():
        special |= {_content(token) for token in (value if isinstance(value, list) else [value])}
    for content, token_id in read_json(path).items():
        yield (
            int(token_id),
            AddedToken(content, normalized=content not in special, special=content in special),
        )


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _with_flags(
    roles: Mapping[str, Any], by_content: Mapping[str, AddedToken]
) -> Iterator[tuple[str, str | AddedToken | list[str | AddedToken]]]:
    """Each role's token with the flags that are known of it."""

    def known(token: Any) -> str | AddedToken:
        if isinstance(token, Mapping):
            return by_content.get(token["content"]) or _added({"special": True} | dict(token))
        return by_content.get(token, str(token))

    for role, value in roles.items():
        if value is not None:
            yield role, [known(token) for token in value] if isinstance(value, list) else known(value)
