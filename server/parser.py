"""httptools' parser of requests, for a server that takes no offer to upgrade. Knows no route.

At such an offer (Java's HttpClient makes one with its first request) httptools takes what follows the headers
for the other protocol. It is still this request's body, and then the next request: read as anything else, a
body is lost, or passes for a request of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import httptools

_FRAMING: Final = (b"content-length", b"transfer-encoding")


class RequestParser:
    """As `httptools.HttpRequestParser`, with the same callbacks; its protocol never sees an upgrade."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._framing: list[bytes] = []  # of the present request: what says how long its body is
        self._is_silent = False  # while the protocol knows what is parsed
        self._parser = self._new_parser()

    def close(self) -> None:
        """Nothing more will be parsed: let go of the protocol, which lets go of this."""
        del self._parser

    def feed_data(self, data: bytes) -> None:
        """Parse. Raises `httptools.HttpParserError` for what is no HTTP."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._pass_over()
            else:
                return

    def get_http_version(self) -> str:
        """The version of the present request."""
        version: str = self._parser.get_http_version()
        return version

    def get_method(self) -> bytes:
        """The method of the present request."""
        method: bytes = self._parser.get_method()
        return method

    def should_keep_alive(self) -> bool:
        """Whether its client wants to go on."""
        return bool(self._parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        """Never."""
        return False

    def _pass_over(self) -> None:
        """Let another parser go on behind these headers, as if they had made no offer."""
        self._parser = self._new_parser()
        self._is_silent = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(self._framing))

    def _new_parser(self) -> httptools.HttpRequestParser:
        callbacks = SimpleNamespace(
            on_message_begin=self._on_message_begin,
            on_url=self._on_url,
            on_header=self._on_header,
            on_headers_complete=self._on_headers_complete,
            on_body=self._protocol.on_body,
            on_message_complete=self._on_message_complete,
        )
        return httptools.HttpRequestParser(callbacks)

    def _on_message_begin(self) -> None:
        if not self._is_silent:
            self._framing = []
            self._protocol.on_message_begin()

    def _on_url(self, url: bytes) -> None:
        if not self._is_silent:
            self._protocol.on_url(url)

    def _on_header(self, name: bytes, value: bytes) -> None:
        if self._is_silent:
            return
        if name.lower() in _FRAMING:
            self._framing.append(b"%b: %b\r\n" % (name, value))
        self._protocol.on_header(name, value)

    def _on_headers_complete(self) -> None:
        if not self._is_silent:
            self._protocol.on_headers_complete()
        self._is_silent = False

    def _on_message_complete(self) -> None:
        if not self._parser.should_upgrade():  # else its end is yet to come
            self._protocol.on_message_complete()
