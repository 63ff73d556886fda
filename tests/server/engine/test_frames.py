"""Frames: what is sent arrives whole, however the bytes come."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from model.sampling.sampling_params import SamplingParams
from server.engine.frames import (
    LENGTH_BYTES,
    Abort,
    Command,
    CommandReader,
    Stepped,
    Submit,
    WorkerConfig,
    body_length,
    encode,
    event_decoder,
)
from server.engine.request import EngineStats, GenerationRequest, Progress, Timings, TokenOutput

PARAMS = SamplingParams(temperature=0.1, logit_bias=((3, -1.5), (7, 100.0)), seed=2**64 - 1)
REQUEST = GenerationRequest(
    prompt_ids=(1, 2, 3), sampling=PARAMS, max_new_tokens=5, end_ids=(0,), priority=-3
)
PROGRESS = Progress(
    arrival_s=0.1 + 0.2, token_ids=(4, 5), timings=Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3)
)
COMMANDS: list[Command] = [WorkerConfig(model_dir="d", model_id="m"), Submit(1, REQUEST, PROGRESS), Abort(1)]


@given(
    st.lists(st.sampled_from(COMMANDS), max_size=20), st.lists(st.integers(1, 300), min_size=1, max_size=9)
)
def test_commands_arrive_whole_and_in_order(commands: list[Command], sizes: list[int]) -> None:
    """In pieces of any size."""
    ours, theirs = socket.socketpair()
    reader = CommandReader(theirs)
    data, seen = b"".join(map(encode, commands)), []
    while data:
        for size in sizes:
            ours.sendall(data[:size])
            data = data[size:]
            arrived = reader.read()
            assert arrived is not None
            seen += arrived
    assert seen == commands
    ours.close()
    assert reader.read(None) is None
    theirs.close()


def test_an_event_keeps_every_bit() -> None:
    output = TokenOutput(
        token_id=7,
        logprob=-0.1 - 1e-17,
        top=((7, -0.1), (9, -1e300)),
        prompt_logprobs=(-1.5, -0.0),
        finish_reason="stop",
        timings=Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3),
    )
    event = Stepped([(2**40, output)], EngineStats(num_running=1))
    frame = encode(event)
    assert body_length(frame[:LENGTH_BYTES]) == len(frame) - LENGTH_BYTES
    assert event_decoder.decode(frame[LENGTH_BYTES:]) == event
