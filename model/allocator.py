"""How the process's memory allocator treats what a step frees. Changes no result, only time."""

from __future__ import annotations

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_PIECE_BYTES = 8 * 2**20  # well below the threshold from which glibc maps each allocation by itself


def keep_freed_memory() -> None:
    """Let glibc keep a step's temporaries for the next one; elsewhere, nothing.

    By default it returns large ones to the system at once, and each step faults them in again: 32,000 page
    faults in a decode step of 32 sequences, and three times its time. Both thresholds are needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # so is this


def reserve(num_bytes: int, device: torch.device) -> None:
    """Bring so much into memory and free it: the allocator, glibc's or the GPU's, keeps it for the steps.

    What loading has freed goes back to the system first: holes between weights, which no step may fill.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pieces = -(-num_bytes // _PIECE_BYTES)
    held = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, device=device).fill_(0) for _ in range(pieces)]
    del held
