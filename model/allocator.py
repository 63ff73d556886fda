"""How the process's memory allocator treats what a step frees. Changes no result, only time."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

import torch
from torch import Tensor

_LIBC: Final = ctypes.CDLL(None)  # glibc, or another that lacks some of this
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_MADV_POPULATE_WRITE = 23  # from Linux's mman.h; older systems do not know it
_PIECE_BYTES = 8 * 2**20  # well below the threshold from which glibc maps each allocation by itself


def return_freed_memory() -> None:
    """Let glibc map each tensor of some size by itself, and return it when freed: while a model is loaded.

    What is stored in another format than it is held in lives for a moment only, between tensors that stay. On
    the heap it left holes of up to 1.6 times the weights.
    """
    _mallopt(_M_MMAP_THRESHOLD, 128 * 2**10)  # glibc's first, which it would raise by itself


def keep_freed_memory() -> None:
    """Let glibc keep a step's temporaries for the next one; elsewhere, nothing.

    By default it returns large ones to the system at once, and each step faults them in again: 32,000 page
    faults in a decode step of 32 sequences, and three times its time. Both thresholds are needed.
    """
    _mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that glibc takes
    _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # so is this


def reserve(num_bytes: int, device: torch.device) -> None:
    """Bring so much into memory and free it: the allocator, glibc's or the GPU's, keeps it for the steps."""
    pieces = -(-num_bytes // _PIECE_BYTES)
    held = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, device=device).fill_(0) for _ in range(pieces)]
    del held


def bring_in(memory: Tensor) -> None:
    """Bring a tensor's own pages into memory in one call, in place of a fault for each; or nothing.

    memory: contiguous, on the CPU. Loading 2 GB takes a tenth less.
    """
    begin = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (memory.data_ptr() + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if (madvise := getattr(_LIBC, "madvise", None)) is not None and begin < end:
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_POPULATE_WRITE)


def _mallopt(parameter: int, value: int) -> None:
    if (mallopt := getattr(_LIBC, "mallopt", None)) is not None:
        mallopt(parameter, value)
