"""A model folder -> a decoder with its weights: nothing missing, nothing left over, or a clear error.

Decides what a valid folder is. Knows nothing of families' fields, caches or steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model.config import DecoderConfig
from model.decoder import Decoder, build_empty
from model.families import Family, family_of

WEIGHTS = "model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Progress = Callable[[int, int], None]  # bytes of weights read so far, and in all


class LoadError(ValueError):
    """A folder that cannot be served. The message is one line: the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose configuration and header of weights were read: what it holds, without the weights."""

    path: Path
    model_type: str
    family: Family
    decoder: Decoder  # its parameters have shapes, but no memory
    dtype: torch.dtype  # that they shall have
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to run, and what its folder said."""

    decoder: Decoder
    model_type: str
    dtype: torch.dtype
    end_token_ids: tuple[int, ...]
    fingerprint: str


def open_folder(path: Path, dtype: str = "auto") -> ModelFolder:
    """Read all of a model folder but its weights.

    dtype: `auto` (as stored), `float32` or `bfloat16`. Raises `LoadError`.
    """
    config_json = _read_json(path / "config.json")
    family, config = _translate(config_json, path / "config.json")
    with _open_weights(path) as file:
        stored = _stored_dtype(file, path / WEIGHTS)
    return ModelFolder(
        path=path,
        model_type=str(config_json["model_type"]),
        family=family,
        decoder=build_empty(config),
        dtype=stored if dtype == "auto" else DTYPES[dtype],
        end_token_ids=_end_token_ids(path, config_json, config),
    )


def load(
    folder: ModelFolder,
    device: torch.device | str = "cpu",
    on_progress: Progress = lambda done, total: None,
) -> LoadedModel:
    """Fill the folder's decoder with its weights. Raises `LoadError`."""
    with _open_weights(folder.path) as file:
        _fill(folder, file, torch.device(device), on_progress)
    # What is computed, not stored (the tables of positions), was made on the CPU.
    folder.decoder.to(device).eval().requires_grad_(False)
    return LoadedModel(
        decoder=folder.decoder,
        model_type=folder.model_type,
        dtype=folder.dtype,
        end_token_ids=folder.end_token_ids,
        fingerprint=fingerprint(folder.path),
    )


@contextmanager
def _open_weights(folder: Path) -> Iterator[Any]:
    """The folder's weights; what is wrong with them, here or in the block, is a `LoadError`."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise LoadError(f"{path.name}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path.name}: {error}") from error


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files that decide an answer: their names, lengths and bytes, in one fixed order."""
    total = hashlib.sha256()
    for name in ("config.json", "generation_config.json", "tokenizer.json", WEIGHTS):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                total.update(f"{name} {path.stat().st_size} ".encode())
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LoadError(f"{path.name}: {reason}") from error
    if not isinstance(held, dict):
        raise LoadError(f"{path.name}: must hold an object, holds {type(held).__name__}")
    return held


def _translate(config_json: dict[str, Any], path: Path) -> tuple[Family, DecoderConfig]:
    try:
        family = family_of(config_json.get("model_type"))
        return family, family.decoder_config(config_json)
    except ValueError as error:
        raise LoadError(f"{path.name}: {error}") from error


def _end_token_ids(folder: Path, config_json: dict[str, Any], config: DecoderConfig) -> tuple[int, ...]:
    """generation_config.json's end tokens, or else config.json's; one id or a list."""
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
    held = generation.get("eos_token_id", config_json.get("eos_token_id"))
    ids = [] if held is None else held if isinstance(held, list) else [held]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < config.vocab_size:
            raise LoadError(
                f"{path.name}: eos_token_id {token_id!r} must be an integer from 0 to {config.vocab_size - 1}"
            )
    return tuple(ids)


def _stored_dtype(file: Any, path: Path) -> torch.dtype:
    """The dtype that holds all of the tensors: bfloat16 if every one is, else float32."""
    names = {"F32", "BF16", "F16"}
    stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if not stored or not stored <= names:
        raise LoadError(f"{path.name}: tensors are {sorted(stored)}, must be one of {sorted(names)}")
    return torch.bfloat16 if stored == {"BF16"} else torch.float32


def _fill(folder: ModelFolder, file: Any, device: torch.device, on_progress: Progress) -> None:
    """Give every parameter its tensor, one at a time, straight in its dtype and on its device."""
    decoder, path = folder.decoder, folder.path / WEIGHTS
    owners = _parameter_owners(decoder)
    missing = set(owners)
    done, total = 0, path.stat().st_size
    for stored_name in file.keys():  # noqa: SIM118
        tensor = file.get_tensor(stored_name)
        done += tensor.nbytes
        for name, part in folder.family.parameters(stored_name, tensor, decoder.config):
            if name not in owners:
                raise LoadError(f"{path.name}: tensor {stored_name!r} has no place in this model")
            expected = decoder.get_parameter(name).shape
            if part.shape != expected:
                raise LoadError(
                    f"{path.name}: tensor {stored_name!r} has shape {list(part.shape)}, "
                    f"expected {list(expected)}"
                )
            if not torch.isfinite(part).all():
                raise LoadError(f"{path.name}: tensor {stored_name!r} holds NaN or infinity")
            parameter = nn.Parameter(part.to(device, folder.dtype), requires_grad=False)
            for module, attribute in owners[name]:
                setattr(module, attribute, parameter)
            missing.discard(name)
        on_progress(done, total)
    if missing:
        raise LoadError(f"{path.name}: tensor {min(missing)!r} is missing ({len(missing)} in all)")
    on_progress(total, total)


def _parameter_owners(decoder: Decoder) -> dict[str, list[tuple[nn.Module, str]]]:
    """For each parameter, by its first name, every (module, attribute) that holds it: two if tied."""
    names: dict[int, str] = {}
    owners: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in decoder.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = names.setdefault(id(parameter), f"{prefix}.{attribute}" if prefix else attribute)
            owners.setdefault(name, []).append((module, attribute))
    return owners


def count_parameters(decoder: Decoder) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in decoder.parameters())
