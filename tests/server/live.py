"""The front on a real socket, with a fake engine behind it, and clients that see streams and hang-ups."""

from __future__ import annotations

import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import tokenizers
import uvicorn

from server.app import create_app
from server.generation_config import GenerationDefaults
from server.protocol import bounded_protocol
from server.settings import Settings, load_settings
from server.text.tokenizer import Tokenizer
from tests.server.fake_engine import END_ID, Behaviour, FakeEngine


def _byte_backend() -> Any:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    vocabulary |= {"<|end|>": END_ID, "th": 257, "the": 258}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return backend


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, two merged ones, and `<|end|>`: characters beyond ASCII span tokens."""
    with tempfile.TemporaryDirectory() as folder:
        _byte_backend().save(str(Path(folder) / "tokenizer.json"))
        return Tokenizer(Path(folder))


def hostile_tokenizer(folder: Path, pattern: str | None = None, normalizer: object = None) -> Tokenizer:
    """The same, of a folder that must stay, but for an expression by which a text is cut, or a normalizer."""
    backend = _byte_backend()
    if pattern is not None:
        cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([cut, backend.pre_tokenizer])
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@dataclass
class Live:
    """A running server."""

    url: str
    address: tuple[str, int]
    engine: FakeEngine
    tokenizer: Tokenizer
    http: httpx.Client
    server: uvicorn.Server

    @property
    def behaviour(self) -> Behaviour:
        """How the engine behaves, for the test to change."""
        return self.engine.behaviour

    def reset(self) -> None:
        """Forget what the last test asked of the engine."""
        self.engine.behaviour = Behaviour()
        self.engine.requests.clear()
        self.engine.num_aborted = 0

    def generate(
        self, inputs: object = "abc", path: str = "/generate", /, **parameters: object
    ) -> httpx.Response:
        """Send a body with these parameters."""
        return self.http.post(path, json={"inputs": inputs, "parameters": parameters})

    def stream(self, inputs: object = "abc", /, **parameters: object) -> list[dict[str, Any]]:
        """The events of a stream, each checked against the grammar of the wire."""
        response = self.generate(inputs, "/generate_stream", **parameters)
        assert response.status_code == 200, response.text
        return parse_events(response.content)

    def series(self) -> dict[str, float]:
        """Every series of /metrics by its name and labels."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line[0] != "#")
        return {series: float(value) for series, _, value in pairs}

    def raw(self, request: bytes, *, is_half: bool = False) -> bytes:
        """What the server answers to these bytes; `is_half`: whatever comes without waiting for the end."""
        with socket.create_connection(self.address, timeout=5) as connection:
            connection.sendall(request)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
                if is_half:
                    break
            return answer


def post(path: str, body: bytes, media_type: str = "application/json", header: str = "") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {media_type}\r\n{header}"
    return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def prompt(num_tokens: int, **parameters: object) -> bytes:
    """A body that asks for this many tokens."""
    return json.dumps({"inputs": "abc", "parameters": {"max_new_tokens": num_tokens, **parameters}}).encode()


def statuses(answer: bytes) -> list[int]:
    """The status of each answer, wherever in the bytes it begins."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def until_closed(connection: socket.socket) -> bytes:
    """All that comes before the connection ends, in whatever way."""
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


def flood(connection: socket.socket, max_bytes: int) -> int:
    """How many bytes the other side lets itself be sent before it hangs up."""
    num_sent = 0
    try:
        while num_sent < max_bytes:
            num_sent += connection.send(b"y" * 65536)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return num_sent


def parse_events(content: bytes) -> list[dict[str, Any]]:
    """The data of the events; fails for a line that is not `id: N` and `data: …` in turn."""
    events = []
    for block in content.decode().removesuffix("\n\n").split("\n\n"):
        if block == ":":
            continue
        *ids, data = block.split("\n")
        assert data.startswith("data: "), block
        event = json.loads(data.removeprefix("data: "))
        assert ids == ([f"id: {event['index']}"] if "index" in event else []), block
        events.append(event)
    return events


def eventually(condition: Callable[[], bool], within_s: float = 20.0) -> bool:
    """Whether the condition holds before the time is over."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


@contextmanager
def serve(
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
    defaults: GenerationDefaults | None = None,
    tokenizer: Tokenizer | None = None,
    **flags: object,
) -> Iterator[Live]:
    """A server with these settings; a model with these wishes, and this tokenizer. Until the block ends."""
    settings: Settings = load_settings(**flags)
    engine, tokenizer = FakeEngine(), tokenizer or byte_tokenizer()
    app = create_app(settings, engine, tokenizer, defaults)

    async def crash() -> None:
        raise RuntimeError("a bug that names /a/path")

    app.add_api_route("/crash", crash, include_in_schema=False)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(settings, app.state.front.metrics, settings.max_connections),
        loop=loop,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert eventually(lambda: server.started)
    url = f"http://{address[0]}:{address[1]}"
    with httpx.Client(base_url=url, timeout=10) as http:
        yield Live(url, address, engine, tokenizer, http, server)
    server.should_exit = True
    thread.join(timeout=5)
    listener.close()
