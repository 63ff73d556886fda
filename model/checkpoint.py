"""The weights' files: which ones there are, which tensors they hold, and reading them once.

Decides what a sound set of safetensors files is, without reading a tensor. Knows nothing of decoders.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.allocator import bring_in
from model.folder import LoadError, find_file, read_json, what_it_is
from model.hashing import PIECE_BYTES, digests_of_pieces
from model.kernels.library import Kernels

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# As `save_pretrained(variant="fp16")` writes, and as its shards were called before.
_VARIANT = re.compile(r"model(?:-\d+-of-\d+)?\.([^.]+?)(?:-\d+-of-\d+)?\.safetensors")
READ_BYTES = 16 * PIECE_BYTES  # in one go, and then hashed: a piece for each lane of the longest vectors

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file's header tells it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str  # the file's name
    begin: int  # where its bytes are in the file
    num_bytes: int

    def error(self, what: str) -> LoadError:
        """What is wrong with it, in one line."""
        return LoadError(f"{self.file}: tensor {self.name[:200]!r} {what}")


class Digest(Protocol):
    """A hash of hashlib's."""

    def update(self, data: bytes, /) -> None:
        """Take these bytes in."""
        ...


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file, and its tensors in the order in which their bytes lie."""

    name: str
    path: Path
    tensors: tuple[StoredTensor, ...]

    def read(
        self,
        pool: Executor,
        digest: Digest,
        memory_of: Callable[[StoredTensor], Tensor],
        kernels: Kernels | None,
    ) -> Iterator[tuple[StoredTensor, Tensor]]:
        """Each tensor, read by all of the pool's threads to where `memory_of` says: [num_bytes], uint8.

        digest takes in the SHA-256 of the header, then that of each piece of each tensor, found by `kernels`
        if they are faster. Raises `LoadError` if the file has changed since it was opened.
        """
        with self.path.open("rb", buffering=0) as file:
            header = os.pread(file.fileno(), self.tensors[0].begin, 0)
            digest.update(hashlib.sha256(header).digest())
            for stored in self.tensors:
                held = memory_of(stored)
                read = partial(_read_part, file.fileno(), stored, held, kernels)
                for digests in pool.map(read, range(0, stored.num_bytes, READ_BYTES)):
                    digest.update(digests)
                tensor = held.view(stored.dtype).view(stored.shape)
                del held, read  # nobody but the caller holds it while it waits
                yield stored, tensor
                del tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All of a model's weights, in one file or many; no tensor is in two of them."""

    name: str  # the file that stands for all: the one, or the index
    files: tuple[WeightsFile, ...]

    @property
    def tensors(self) -> list[StoredTensor]:
        """Those of all files."""
        return [tensor for file in self.files for tensor in file.tensors]

    @property
    def num_bytes(self) -> int:
        """The tensors' bytes."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a folder, by their headers: `model.safetensors`, or else the files that its index names.

    Raises `LoadError` if a file is missing or unsound, or the files and the index differ.
    """
    if find_file(folder, WEIGHTS) is not None:
        return Checkpoint(WEIGHTS, (_open_file(folder, WEIGHTS),))
    index = read_json(folder, INDEX)
    if index is None:
        raise LoadError(f"{WEIGHTS}: {_why_there_is_none(folder)}")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{INDEX}: weight_map must be an object that names a file for each tensor")
    for name in weight_map.values():
        if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".safetensors"):
            raise LoadError(f"{INDEX}: {str(name)[:100]!r} is no name of a safetensors file in this folder")
    files = tuple(_open_file(folder, name) for name in sorted(set(weight_map.values())))
    _compare(weight_map, files)
    return Checkpoint(INDEX, files)


def _compare(weight_map: dict[str, str], files: tuple[WeightsFile, ...]) -> None:
    """Each tensor must be in the file that the index names, and in no other."""
    held: dict[str, StoredTensor] = {}
    for tensor in (tensor for file in files for tensor in file.tensors):
        if tensor.name in held:
            raise tensor.error(f"is in {held[tensor.name].file}, too")
        if tensor.name not in weight_map:
            raise tensor.error(f"is not in {INDEX}")
        held[tensor.name] = tensor
    for name, file in weight_map.items():
        if name not in held or held[name].file != file:
            raise LoadError(f"{file}: tensor {name[:200]!r} is missing, which {INDEX} says to be there")


def _open_file(folder: Path, name: str) -> WeightsFile:
    """Read a file's header. The library checks that the tensors' bytes follow each other without gap."""
    path = find_file(folder, name)
    if path is None:
        raise LoadError(f"{name}: there is no such file, which {INDEX} names")
    try:
        with path.open("rb") as file:
            start = file.read(64)
        # A length and then an object are what they should be, whatever the length's bytes look like.
        if start[8:9] != b"{" and (what := what_it_is(start)):
            raise LoadError(f"{name}: {what}")
        with safe_open(path, framework="pt") as opened:
            tensors = []
            begin = 8 + int.from_bytes(start[:8], "little")
            for tensor_name in opened.offset_keys():
                header = opened.get_slice(tensor_name)
                tensor = _stored(name, tensor_name, header.get_shape(), header.get_dtype(), begin)
                begin += tensor.num_bytes
                tensors.append(tensor)
    except OSError as error:
        raise LoadError(f"{name}: {error.strerror}") from error
    except SafetensorError as error:
        raise LoadError(f"{name}: is no whole safetensors file: {error}") from error
    if not tensors:
        raise LoadError(f"{name}: holds no tensors")
    return WeightsFile(name, path, tuple(tensors))


def _stored(file: str, name: str, shape: list[int], dtype_name: str, begin: int) -> StoredTensor:
    dtype = _DTYPES.get(dtype_name)
    if dtype is None:
        raise LoadError(f"{file}: tensor {name[:200]!r} is stored as {dtype_name}, which is not supported")
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    tensor = StoredTensor(name, tuple(shape), dtype, file, begin, num_bytes)
    if not num_bytes:
        raise tensor.error(f"has shape {shape}, which holds nothing")
    return tensor


def _why_there_is_none(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    for endings, what in (
        (
            (".bin", ".pt", ".pth", ".ckpt", ".pkl"),
            "is a pickle, which could run code: convert it to safetensors",
        ),
        ((".gguf",), "is of a format that is not supported"),
        ((".safetensors",), "does not stand for the model without an index"),
    ):
        if found := [name for name in names if name.endswith(endings)]:
            if variant := _VARIANT.fullmatch(found[0]):
                what = f"is of the variant {variant[1]!r:.50}; the model itself must be in {WEIGHTS}"
            return f"there is no such file; {found[0][:100]!r} {what}"
    return "there is no such file"


def _read_part(
    descriptor: int, stored: StoredTensor, memory: Tensor, kernels: Kernels | None, begin: int
) -> bytes:
    """Read one part into its place; the SHA-256 of its pieces."""
    part = memory[begin : begin + READ_BYTES]
    bring_in(part)
    left = part.numpy().data
    while left:
        count = os.preadv(descriptor, [left], stored.begin + begin + len(part) - len(left))
        if not count:
            raise stored.error("ends too early: the file became shorter while it was read")
        left = left[count:]
    return digests_of_pieces(part, kernels)
