"""A model by its id on the Hugging Face hub: its files, in the hub library's own cache.

The only place that opens a connection to other machines, and only for an id that somebody wrote. What may be
fetched is data: no pickle, no code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES: Final = (
    "*.json", "*.safetensors", "*.jinja", "*.tiktoken", "merges.txt", "tokenizer.model*",
)  # fmt: skip


class HubError(Exception):
    """The model cannot be had. The message is one line."""


def is_model_id(name: str) -> bool:
    """Whether this could be an id, `organization/model`."""
    return _ID.fullmatch(name) is not None


def fetch(model_id: str) -> Path:
    """The folder in the cache that holds the model, fetched if it is not there. Raises `HubError`.

    Where the cache is, which token is used and whether the network may be, the library's own variables say:
    HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise HubError(
            f"{model_id}: there is no such folder; to fetch it, `pip install 'verbatim-server[hub]'`"
        ) from None
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # what the library raises for an id, a network or a disk
        reason = " ".join(str(error).split())[:200]
        raise HubError(f"{model_id}: no such folder, and the hub does not give it: {reason}") from error


def id_of(folder: Path) -> str | None:
    """The id of a folder in the cache, whose own name is that of a revision; None of another folder."""
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return None
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
