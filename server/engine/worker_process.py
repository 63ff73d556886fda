"""WorkerProcess: one worker, from its start to its end. Knows no stream, nor what its events mean."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

from server.engine.frames import (
    LENGTH_BYTES,
    Command,
    Event,
    WorkerConfig,
    body_length,
    encode,
    event_decoder,
)
from server.engine.heartbeat import Heartbeat

# A compute thread that has ended its part tries so often whether the others have, and then sleeps. By default
# it would try for milliseconds, and so keep the front, or another compute thread, from its core.
SPINNING = ("env", "GOMP_SPINCOUNT=1000")  # which becomes the worker, and must come before it loads OpenMP
_PATIENCE_S = 5.0  # for a worker whose socket is closed to end by itself


class WorkerProcess:
    """A process of its own at the other end of a socket pair."""

    def __init__(self, config: WorkerConfig, module: str) -> None:
        """Start `python -m module`, and tell it what to load. What it says lies there until `connect`."""
        self.heartbeat = Heartbeat.create(config.max_num_seqs)
        self._socket, theirs = socket.socketpair()
        self._socket.sendall(encode(config))
        self._process = subprocess.Popen(
            [*SPINNING, sys.executable, "-m", module, str(theirs.fileno()), str(self.heartbeat.descriptor)],
            pass_fds=(theirs.fileno(), self.heartbeat.descriptor),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on the terminal is the front's to handle
        )
        theirs.close()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Take part in the event loop; returns before it is ready."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Send a command. To a worker that is gone it is lost."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(command))

    async def events(self) -> AsyncIterator[Event]:
        """What it says, until it has closed its end. A frame that it died in the middle of is dropped."""
        assert self._reader is not None
        try:
            while True:
                length = body_length(await self._reader.readexactly(LENGTH_BYTES))
                yield event_decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def end(self) -> str:
        """Close the socket, by which it ends, or kill it; how it ended, in words."""
        (self._writer or self._socket).close()
        try:
            status = await asyncio.to_thread(self._process.wait, _PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = await asyncio.to_thread(self._process.wait)
        self.heartbeat.close()
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"
