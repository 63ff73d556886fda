"""What the front and the worker say to each other: msgpack messages, each after its length in four bytes."""

from __future__ import annotations

import socket
import struct

import msgspec

from model.interface import ModelInfo
from server.engine.request import EngineStats, GenerationRequest, Progress, TokenOutput

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, tag="config"):
    """The first message to a worker: what to load and how much to hold. 0 or `auto`: the worker decides."""

    model_dir: str
    model_id: str
    dtype: str = "auto"
    quantize: str = "none"
    device: str = "auto"
    kernels: str = "auto"
    num_threads: int = 0
    kv_cache_tokens: int = 0
    max_batch_tokens: int = 512
    max_num_seqs: int = 32
    speculative_tokens: int = 0


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Run a generation, or go on with it.

    Ids are the order of arrival; the choices of one prompt have ids in a row.
    """

    sequence_id: int
    request: GenerationRequest
    progress: Progress


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Stop a generation. Unknown ids are ignored: it may have ended meanwhile."""

    sequence_id: int


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Bytes of weights read so far, and in all."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and has generated a first token."""

    info: ModelInfo


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The model cannot be served: one line saying why. The worker ends."""

    reason: str


class Logged(msgspec.Struct, frozen=True, tag="logged"):
    """A line for the server's log, with its traceback if it has one."""

    level: int
    message: str


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """The news of one step, all sequences in one message."""

    news: list[tuple[int, TokenOutput]]
    stats: EngineStats


Command = WorkerConfig | Submit | Abort
Event = Loading | Ready | Refused | Logged | Stepped

_encoder = msgspec.msgpack.Encoder()
command_decoder = msgspec.msgpack.Decoder(Command)
event_decoder = msgspec.msgpack.Decoder(Event)


def encode(message: Command | Event) -> bytes:
    """One frame: length and message."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def body_length(prefix: bytes | bytearray) -> int:
    """The length that the first four bytes of a frame announce."""
    length: int = _LENGTH.unpack(prefix)[0]
    return length


class CommandReader:
    """The worker's side of the socket: whole commands, as many as have arrived."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = bytearray()

    def read(self, timeout_s: float | None = 0.0) -> list[Command] | None:
        """What has arrived, after `timeout_s` at the latest; None waits. None: the other side is gone."""
        self._connection.settimeout(timeout_s)
        try:
            while part := self._connection.recv(1 << 16):
                self._held += part
                self._connection.settimeout(0.0)
            return None
        except (BlockingIOError, TimeoutError):
            return self._whole_commands()
        finally:
            self._connection.settimeout(None)

    def _whole_commands(self) -> list[Command]:
        commands: list[Command] = []
        start = 0
        while len(self._held) >= start + LENGTH_BYTES:
            body = start + LENGTH_BYTES
            end = body + body_length(self._held[start:body])
            if len(self._held) < end:
                break
            commands.append(command_decoder.decode(memoryview(self._held)[body:end]))
            start = end
        del self._held[:start]
        return commands
