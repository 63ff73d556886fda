"""The worker's heartbeat: a few bytes of shared memory, so that the front sees it alive without asking it.

| num_beats | beat at, monotonic ns |     two 64-bit integers
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time

_LAYOUT = struct.Struct("=QQ")


class Heartbeat:
    """Written by one process, read by another. The clock is the machine's, common to both."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _LAYOUT.size)

    @classmethod
    def create(cls) -> Heartbeat:
        """New shared memory, without a name in any file system that must be writable."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("verbatim-heartbeat")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _LAYOUT.size)
        return cls(descriptor)

    def beat(self) -> None:
        """Say: alive now. The worker says it before each step, and waits in silence when it has no work."""
        num_beats, _ = _LAYOUT.unpack_from(self._memory)
        _LAYOUT.pack_into(self._memory, 0, num_beats + 1, time.monotonic_ns())

    def last_beat_s(self) -> float:
        """When it was alive last, by `time.monotonic`; 0 if it never was."""
        _, beat_ns = _LAYOUT.unpack_from(self._memory)
        return float(beat_ns / 1e9)

    def close(self) -> None:
        """Give memory and descriptor back."""
        self._memory.close()
        os.close(self.descriptor)
