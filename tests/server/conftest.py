"""One server for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live import Live, serve


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with serve(body_timeout_s=1.0, sse_comment_s=0.1) as live:
        yield live


@pytest.fixture
def live(server: Live) -> Live:
    """The module's server, with an engine that has forgotten the last test."""
    server.reset()
    return server
