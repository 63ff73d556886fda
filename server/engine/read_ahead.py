"""Has the system read a model's weights into its cache, while processes start that will want them.

A hint: it decides nothing, and whatever goes wrong is told by whoever loads. Knows no tensors.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

_STEP_BYTES = 2**17  # of one call the system reads no more than its own read-ahead, which is this as a rule


def read_ahead(folder: Path) -> None:
    """Begin with it; returns at once."""
    if hasattr(os, "posix_fadvise"):
        Thread(target=_read_files, args=(folder,), name="read-ahead", daemon=True).start()


def _read_files(folder: Path) -> None:
    with suppress(OSError):
        whole = folder / "model.safetensors"
        for path in [whole] if whole.exists() else sorted(folder.glob("model-*.safetensors")):
            if path.is_file():  # a FIFO would be waited for
                with path.open("rb") as file:
                    for begin in range(0, path.stat().st_size, _STEP_BYTES):
                        os.posix_fadvise(file.fileno(), begin, _STEP_BYTES, os.POSIX_FADV_WILLNEED)
