"""Which files of a model folder may be opened: the rule of the model's loader, for those it does not read.

Knows nothing of what the files hold.
"""

from __future__ import annotations

from pathlib import Path


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
