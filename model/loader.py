"""A model folder -> a decoder with its weights: nothing missing, nothing left over, or a clear error.

Decides what a valid folder is, and that before it reads a tensor. Knows nothing of families' fields, caches
or steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from model.config import DecoderConfig
from model.counting import parameter_owners
from model.decoder import Decoder, build_empty
from model.families import Family, family_of
from model.filling import Filling
from model.folder import LoadError, read_file, read_json
from model.kernels.library import Kernels
from model.machine import num_cores
from model.parameters import Parameters, Source, without_memory
from model.quantization import Scheme, scheme_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STORED_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
# The files beside the weights that decide an answer.
DECIDING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
DECIDING_PATTERNS = ("tokenizer.model?*", "*.tiktoken", "additional_chat_templates/*.jinja")
MAX_POSITIONS = 2**22  # the tables of positions are laid out before any size is compared with the weights

Progress = Callable[[int, int], None]  # bytes of weights read so far, and in all


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that was checked: its configuration, and the headers of its weights, which fit each other."""

    path: Path
    config_json: dict[str, Any]
    source: Source
    dtype: torch.dtype  # that the parameters shall have, but for packed ones
    places: dict[str, list[str]]  # the parameters that each stored tensor gives; none for some constants
    end_token_ids: tuple[int, ...]

    @property
    def model_type(self) -> str:
        """The name of its family."""
        return str(self.config_json["model_type"])

    @property
    def decoder(self) -> Decoder:
        """Its parameters have shapes, but no memory."""
        return self.source.decoder

    @property
    def checkpoint(self) -> Checkpoint:
        """The headers of its weights."""
        return self.source.checkpoint

    @property
    def quantization(self) -> str | None:
        """The format in which linear layers are stored, or held; None if plainly."""
        scheme, quantize = self.source.scheme, self.source.quantize
        return quantize if quantize != "none" else None if scheme is None else scheme.name


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to run, and what its folder said."""

    decoder: Decoder
    model_type: str
    dtype: torch.dtype
    end_token_ids: tuple[int, ...]
    fingerprint: str


def open_folder(path: Path, dtype: str = "auto", quantize: str = "none") -> ModelFolder:
    """Read all of a model folder but its tensors, and check that these will fit.

    dtype: `float32`, `bfloat16` or `auto`: bfloat16 if all that is used is stored so, else float32.
    quantize: `none`, `int8` or `int4`.
    Raises `LoadError`.
    """
    config_json = read_json(path, "config.json")
    if config_json is None:
        raise LoadError("config.json: there is no such file")
    family, config, scheme = _translate(config_json)
    if scheme is not None and scheme.module is not None and quantize != "none":
        raise LoadError(f"quantize is {quantize!r}, but the weights are quantized already ({scheme.name})")
    checkpoint = open_checkpoint(path)
    decoder = _build(config, checkpoint)
    source = Source(family, decoder, checkpoint, scheme, quantize)
    Parameters(source).install()
    places = _match(source)
    used = {
        tensor.dtype for tensor in checkpoint.tensors if places[tensor.name] and not source.is_packed(tensor)
    }
    stored = torch.bfloat16 if used == {torch.bfloat16} else torch.float32
    held = stored if dtype == "auto" else DTYPES[dtype]
    decoder.embedding.table_dtype = held
    return ModelFolder(
        path=path,
        config_json=config_json,
        source=source,
        dtype=held,
        places=places,
        end_token_ids=_end_token_ids(path, config_json, config),
    )


def load(
    folder: ModelFolder,
    device: torch.device | str = "cpu",
    on_progress: Progress = lambda done, total: None,
    kernels: Kernels | None = None,
) -> LoadedModel:
    """Fill the folder's decoder with its weights, one tensor at a time. Raises `LoadError`.

    What is quantized and hashed is so by `kernels`, if there are any: the same, sooner.

    At its peak it takes the weights and one stored tensor. The fingerprint is the SHA-256 of the files that
    decide an answer: name, length and SHA-256 of each beside the weights, then, file by file of these, the
    SHA-256 of the header and of each tensor's pieces of 128 KiB (see hashing.py).
    """
    filling = Filling(folder.source, folder.dtype, torch.device(device), kernels)
    digest = hashlib.sha256()
    for name in (*DECIDING_FILES, *_matches(folder.path)):
        if (content := read_file(folder.path, name)) is not None:
            digest.update(f"{name} {len(content)} ".encode() + hashlib.sha256(content).digest())
    done, total = 0, folder.checkpoint.num_bytes
    with ThreadPoolExecutor(2 * num_cores()) as pool:  # some wait for the disk
        for file in folder.checkpoint.files:
            for stored, tensor in file.read(pool, digest, filling.memory_of, kernels):
                filling.fill(stored, tensor)
                del tensor  # before the next one is read
                done += stored.num_bytes
                on_progress(done, total)
    # What is computed, not stored (the tables of positions), was made on the CPU.
    folder.decoder.to(device).eval().requires_grad_(False)
    return LoadedModel(
        decoder=folder.decoder,
        model_type=folder.model_type,
        dtype=folder.dtype,
        end_token_ids=folder.end_token_ids,
        fingerprint=digest.hexdigest(),
    )


def _matches(path: Path) -> list[str]:
    """The files that have no fixed name, in one order."""
    found = (file for pattern in DECIDING_PATTERNS for file in path.glob(pattern))
    return sorted(file.relative_to(path).as_posix() for file in found)


def _translate(config_json: dict[str, Any]) -> tuple[Family, DecoderConfig, Scheme | None]:
    try:
        family = family_of(config_json.get("model_type"))
        scheme = scheme_of(config_json)
        return family, family.decoder_config(config_json), scheme
    except ValueError as error:
        code = (
            "; the folder's own code, which auto_map names, is never run" if "auto_map" in config_json else ""
        )
        raise LoadError(f"config.json: {error}{code}") from error


def _build(config: DecoderConfig, checkpoint: Checkpoint) -> Decoder:
    """The decoder without its weights, unless it is of a size that cannot be meant."""
    num_tensors = len(checkpoint.tensors)
    if config.num_layers > num_tensors:
        raise LoadError(
            f"config.json: has {config.num_layers} layers, but {num_tensors} tensors in {checkpoint.name}"
        )
    if config.max_positions > MAX_POSITIONS:
        raise LoadError(
            f"config.json: there are {config.max_positions} positions, at most {MAX_POSITIONS} can be served"
        )
    try:
        return build_empty(config)
    except (RuntimeError, TypeError) as error:  # torch's words for it fill a page
        raise LoadError("config.json: its sizes are more than a machine can count") from error


def _match(source: Source) -> dict[str, list[str]]:
    """Which parameters each stored tensor gives: every parameter once, in its shape. Reads no tensor."""
    decoder, checkpoint = source.decoder, source.checkpoint
    parameters = Parameters(source)
    expected = {name: decoder.get_parameter(name).shape for name in parameter_owners(decoder)}
    places: dict[str, list[str]] = {}
    given_by: dict[str, StoredTensor] = {}
    for stored in checkpoint.tensors:
        places[stored.name] = []
        for name, part in parameters.of(stored, without_memory(stored)):
            if name not in expected:
                raise stored.error("has no place in this model")
            if part.shape != expected[name]:
                of = "" if part.shape == stored.shape else f", and its part {name!r} {list(part.shape)}"
                raise stored.error(f"has shape {list(stored.shape)}{of}, expected {list(expected[name])}")
            if stored.dtype not in STORED_DTYPES and not source.is_packed(stored):
                kinds = ", ".join(STORED_DTYPES.values())
                raise stored.error(
                    f"is of {str(stored.dtype).removeprefix('torch.')}, must be one of {kinds}"
                )
            if name in given_by:
                first = given_by[name]
                raise stored.error(f"gives {name!r}, which {first.name!r} in {first.file} gives already")
            given_by[name] = stored
            places[stored.name].append(name)
    missing = expected.keys() - given_by.keys()
    if missing:
        raise LoadError(f"{checkpoint.name}: tensor {min(missing)!r} is missing ({len(missing)} in all)")
    return places


def _end_token_ids(path: Path, config_json: dict[str, Any], config: DecoderConfig) -> tuple[int, ...]:
    """generation_config.json's end tokens, or else config.json's; one id or a list.

    An id beyond the vocabulary is left out: what `transformers` writes by itself for a small model's, and no
    token ever is.
    """
    generation = read_json(path, "generation_config.json")
    file = (
        "config.json" if generation is None or "eos_token_id" not in generation else "generation_config.json"
    )
    held = (generation or {}).get("eos_token_id", config_json.get("eos_token_id"))
    ids = [] if held is None else held if isinstance(held, list) else [held]
    for token_id in ids:
        if type(token_id) is not int or token_id < 0:
            raise LoadError(f"{file}: eos_token_id {str(token_id)[:100]!r} must be an integer from 0 on")
    return tuple(token_id for token_id in ids if token_id < config.vocab_size)
