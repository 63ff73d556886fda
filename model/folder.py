"""A model's folder as a place: which of its files may be opened, and reading the small ones.

Decides what is refused before anything is parsed: what is no file, what leads out of the folder, what is too
long. Knows nothing of what the files mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20  # the longest index of weights that is in use has 10 MB


class LoadError(ValueError):
    """A folder that cannot be served. The message is one line: the file and what is wrong with it."""


def find_file(folder: Path, name: str) -> Path | None:
    """Where the file really lies; None if there is none.

    A link must stay in the folder, or lead from a snapshot of a hub's cache to its blobs, which is how that
    cache stores every file. Raises `LoadError` for any other, and for what is no regular file: a FIFO would
    be waited for.
    """
    folder = folder.resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent / "blobs")
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        if path.is_symlink():
            raise LoadError(f"{name}: is a link to a file that is not there") from None
        return None
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, until Python 3.12
        raise LoadError(f"{name}: cannot be found behind its links") from None
    if not any(target.is_relative_to(root) for root in roots):
        raise LoadError(f"{name}: is a link that leads out of the model's folder")
    if not target.is_file():
        raise LoadError(f"{name}: is {'a folder' if target.is_dir() else 'no regular file'}, must be a file")
    return target


def read_file(folder: Path, name: str) -> bytes | None:
    """The content of a small file; None if there is none. Raises `LoadError`."""
    path = find_file(folder, name)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise LoadError(f"{name}: {error.strerror}") from error
    if len(content) > MAX_JSON_BYTES:
        raise LoadError(f"{name}: has {path.stat().st_size} bytes, must be at most {MAX_JSON_BYTES}")
    if what := what_it_is(content[:64]):
        raise LoadError(f"{name}: {what}")
    return content


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The object that a file holds; None if there is no such file. Raises `LoadError`."""
    content = read_file(folder, name)
    if content is None:
        return None
    try:
        held = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise LoadError(f"{name}: has too many levels") from None
    except ValueError as error:
        raise LoadError(f"{name}: {error}") from error
    if not isinstance(held, dict):
        raise LoadError(f"{name}: must hold an object, holds {type(held).__name__}")
    return held


def what_it_is(start: bytes) -> str | None:
    """What is often found in a file's place, by its first bytes; None if it is none of that."""
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer in the file's place: `git lfs pull` fetches the file"
    if start.lstrip()[:1] == b"<":
        return "is a page of HTML or XML in the file's place: what fetched it was answered with an error"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "is a pickle or an archive of PyTorch's, which could run code: convert it to safetensors"
    return None
