"""Memory beside the work: what is free goes back to the system, and garbage is not sought where none is."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# glibc's; other C libraries do without. Free pages in the middle of its heap it keeps for ever: after hours
# of mixed requests that looks like a leak.
_MALLOC_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """0.1 ms for each MB of holes. Not for the worker: its steps count on what was reserved for them."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def keep_all() -> None:
    """Never look for garbage among what exists now: modules, the application, a model.

    Python looks through all objects now and then: through these for 80 to 140 ms, in which no stream goes on.
    """
    gc.freeze()
