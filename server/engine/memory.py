"""Giving freed memory back to the system, so that what the idle front holds depends less on its past."""

from __future__ import annotations

import ctypes
from typing import Final

# glibc's; other C libraries do without. Free pages in the middle of its heap it keeps for ever: after hours
# of mixed requests that looks like a leak.
_MALLOC_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """0.1 ms for each MB of holes. Not for the worker: its steps count on what was reserved for them."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
