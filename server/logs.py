"""What a log line looks like: readable on a terminal, one JSON object a line anywhere else.

Nothing of a request's text or keys is ever logged; what a record carries in `extra` becomes its fields.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import msgspec

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …}` in one line, the traceback within it."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00.123 info  verbatim.access: message`."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        record.level = record.levelname.lower()
        return super().format(record)


def is_text(log_format: Literal["auto", "text", "json"]) -> bool:
    """Whether lines are for a reader; `auto` asks whether one is at the other end."""
    return log_format == "text" or (log_format == "auto" and sys.stderr.isatty())


def install(log_format: Literal["auto", "text", "json"], log_level: str) -> None:
    """Send every log line to standard error, in one format, uvicorn's included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if is_text(log_format) else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=log_level.upper(), force=True)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))
