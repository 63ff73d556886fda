"""What a model folder is, said without reading its weights: what `verbatim inspect` shows.

Decides what is worth a word. What cannot be served at all, the loader refuses.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import INDEX, WEIGHTS
from model.counting import count_parameters, parameter_counts
from model.decoder import Decoder
from model.folder import find_file, read_json
from model.interface import FolderReport
from model.loader import ModelFolder, open_folder

# Patterns, as the front looks for these files.
TOKENIZERS = ("tokenizer.json", "tokenizer.model*", "vocab.json", "*.tiktoken")
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja", "chat_template.json")
CODE = ("modeling_", "configuration_", "tokenization_")  # files that `auto_map` would name
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def inspect_folder(path: Path) -> FolderReport:
    """Look at a folder that can be served. Raises `LoadError` for any other."""
    folder = open_folder(path)
    checkpoint, config = folder.checkpoint, folder.decoder.config
    held = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    return FolderReport(
        model_type=folder.model_type,
        dtype=_name(folder.dtype),
        num_parameters=count_parameters(folder.decoder),
        parts=dict(_parts(folder.decoder)),
        decoder={name: value for name, value in held if isinstance(value, bool | int | float | str)},
        num_files=len(checkpoint.files),
        num_tensors=len(checkpoint.tensors),
        num_bytes=checkpoint.num_bytes,
        stored_dtypes=dict(Counter(_name(tensor.dtype) for tensor in checkpoint.tensors)),
        end_token_ids=folder.end_token_ids,
        has_chat_template=_has_chat_template(path),
        unusual=tuple(_unusual(folder)),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parts(decoder: Decoder) -> Counter[str]:
    """How many parameters each part has, over all layers; all norms are one part."""
    parts: Counter[str] = Counter()
    for name, count in parameter_counts(decoder):
        path = name.split(".")
        part = path[2] if path[0] == "layers" else path[0]
        parts["norms" if "norm" in part else part] += count
    return parts


def _has_chat_template(path: Path) -> bool:
    if _has_any(path, TEMPLATES):
        return True
    return bool((read_json(path, "tokenizer_config.json") or {}).get("chat_template"))


def _has_any(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(find_file(path, file.relative_to(path).as_posix()) for p in patterns for file in path.glob(p))


def _unusual(folder: ModelFolder) -> Iterator[str]:
    """A sentence for each thing that its owner may not expect."""
    path, checkpoint = folder.path, folder.checkpoint
    names = sorted(file.name for file in path.iterdir())
    if "auto_map" in folder.config_json or any(name.startswith(CODE) for name in names):
        yield "it brings code of its own, which is never run"
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        yield f"{pickles[0][:100]!r} may be a pickle, and is not read"
    if others := _unread_weights(folder, names):
        yield f"{others[0][:100]!r} is not read ({len(others)} such in all)"
    plain = [tensor for tensor in checkpoint.tensors if not folder.source.is_packed(tensor)]
    if folder.quantization is not None:
        num_packed = len({layer for layer, _ in folder.source.places.values()})
        yield f"its weights are quantized: {folder.quantization}, {num_packed} layers"
    if unneeded := [tensor.name for tensor in plain if not folder.places[tensor.name]]:
        yield f"tensor {unneeded[0][:100]!r} is not needed ({len(unneeded)} such in all)"
    used = {tensor.dtype for tensor in plain if folder.places[tensor.name]}
    if len(used) > 1:
        yield f"its weights are of several formats: {', '.join(sorted(map(_name, used)))}"
    if torch.float16 in used:
        yield "float16 is converted to float32, which takes twice the memory, unless dtype is bfloat16"
    if torch.float64 in used:
        yield "float64 is rounded to what is served, float32 at most"
    if not folder.end_token_ids:
        yield "it has no end token: answers end by their length or a stop string"
    if not _has_any(path, TOKENIZERS):
        yield "it has no tokenizer"
    yield from _wrong_total(folder)


def _unread_weights(folder: ModelFolder, names: list[str]) -> list[str]:
    """Files of weights, or the index, beside those that are used."""
    read = {folder.checkpoint.name, *(file.name for file in folder.checkpoint.files)}
    return [name for name in names if name.endswith((".safetensors", ".gguf", INDEX)) and name not in read]


def _wrong_total(folder: ModelFolder) -> Iterator[str]:
    """The index may tell how many bytes the tensors have."""
    if folder.checkpoint.name == WEIGHTS:
        return
    metadata: Any = (read_json(folder.path, INDEX) or {}).get("metadata")
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    if told is not None and told != folder.checkpoint.num_bytes:
        yield f"{INDEX} tells of {str(told)[:30]} bytes, but there are {folder.checkpoint.num_bytes}"
