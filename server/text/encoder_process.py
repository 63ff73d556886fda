"""The process in which a tokenizer that is not trusted encodes: `python -m server.text.encoder_process`.

It reads one line of JSON after the other and answers each with one: first the folder, then what to encode.
A text that takes too long ends the process, by the kernel's hand; whoever started it sees the pipe close.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import msgspec

from server.text.encoder import MAX_BYTES, Encoding, Question, encode
from server.text.helper import answer_lines_alone
from server.text.tokenizer_files import load_backend


def main() -> None:
    """Answer until the other end closes."""
    answer_lines_alone()
    for limit, value in ((resource.RLIMIT_AS, MAX_BYTES), (resource.RLIMIT_CORE, 0)):
        _, allowed = resource.getrlimit(limit)
        value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(limit, (value, value))
    backend, _ = load_backend(Path(json.loads(sys.stdin.buffer.readline())))
    answer = Encoding([])
    while True:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
        if not (line := sys.stdin.buffer.readline()):
            return
        question = msgspec.json.decode(line, type=Question)
        signal.setitimer(signal.ITIMER_PROF, question.max_cpu_s)
        answer = encode(backend, question)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
