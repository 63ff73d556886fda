"""Which files of a model folder may be read, and how much of them: the rules of the model's loader.

Knows nothing of what the files hold.
"""

from __future__ import annotations

from pathlib import Path

MAX_FILE_BYTES = 64 * 2**20  # the largest tokenizers in use have 35 MB


def read_inside(path: Path, folder: Path | None = None, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """What a file of `folder`, by default the one that it lies in, holds.

    Raises `ValueError` or `OSError`, neither of which names the file, if it may not be opened, is no file or
    is too long.
    """
    target = stay_inside(path, folder)
    if target.exists() and not target.is_file():  # a FIFO would be waited for
        raise ValueError("is no regular file")
    with target.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"has {target.stat().st_size} bytes, must be at most {max_bytes}")
    return content


def stay_inside(path: Path, folder: Path | None = None) -> Path:
    """Return where a file of `folder`, by default the one that it lies in, really is.

    A link must stay in the folder, or lead from a snapshot of a hub's cache to its blobs. Raises `ValueError`
    for any other: a folder from elsewhere could name any file of the machine.
    """
    folder = (folder or path.parent).resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise ValueError("is a link that leads out of the model's folder")
    return target
