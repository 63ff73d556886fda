"""The worker's heartbeat: a little shared memory, so that the front sees it alive without asking it.

| num_beats | beat at, monotonic ns | num_running | id of each sequence in the step, max_num_seqs of them

All of them are 64-bit integers. If the worker dies, the last ones tell who was in the step that killed it.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from array import array
from collections.abc import Sequence

_BEAT = struct.Struct("=QQ")
_COUNT = struct.Struct("=Q")
_IDS_AT = _BEAT.size + _COUNT.size
_ID_BYTES = 8


class Heartbeat:
    """Written by one process, read by another. The clock is the machine's, common to both."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self._num_beats = 0

    @classmethod
    def create(cls, max_num_seqs: int) -> Heartbeat:
        """New shared memory, without a name in any file system that must be writable."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("verbatim-heartbeat")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _IDS_AT + max_num_seqs * _ID_BYTES)
        return cls(descriptor)

    def beat(self) -> None:
        """Say: alive now. Said before each step and each layer of it; without work, silence means nothing."""
        self._num_beats += 1
        _BEAT.pack_into(self._memory, 0, self._num_beats, time.monotonic_ns())

    def begin_step(self, sequence_ids: Sequence[int]) -> None:
        """Say whom the next step computes."""
        ids = array("q", sequence_ids).tobytes()
        self._memory[_IDS_AT : _IDS_AT + len(ids)] = ids
        _COUNT.pack_into(self._memory, _BEAT.size, len(sequence_ids))
        self.beat()

    def end_step(self) -> None:
        """Say that it is computed."""
        _COUNT.pack_into(self._memory, _BEAT.size, 0)

    def last_beat_s(self) -> float:
        """When it was alive last, by `time.monotonic`; 0 if it never was."""
        _, beat_ns = _BEAT.unpack_from(self._memory)
        return float(beat_ns / 1e9)

    def step_ids(self) -> list[int]:
        """Who is in the step that is being computed, or was when the worker died."""
        (count,) = _COUNT.unpack_from(self._memory, _BEAT.size)
        return list(array("q", self._memory[_IDS_AT : _IDS_AT + count * _ID_BYTES]))

    def close(self) -> None:
        """Give memory and descriptor back. Safe any number of times."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.descriptor)
