"""Streams that start together, for a measurement: what they are, what became of them, and how they are done.

Decides nothing of what they are compared with. Torch-free; knows no sockets.
"""

from __future__ import annotations

import time
from statistics import median

import msgspec

from model.sampling.sampling_params import SamplingParams
from server.engine.engine import Engine
from server.engine.request import GenerationRequest


class Load(msgspec.Struct, frozen=True, tag="load"):
    """One stream for each prompt, end tokens ignored."""

    prompts: list[list[int]]
    num_new_tokens: int
    sampling: SamplingParams = SamplingParams(temperature=0.0)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a load. Times from the start of all, in seconds."""

    took_s: float  # until the last token
    first_token_s: list[float]  # of each stream
    token_ids: list[list[int]]  # of each stream
    step_s: float | None = None  # the median step in which every stream got its next token, if there was one


class RoofQuestion(msgspec.Struct, frozen=True, tag="roof"):
    """Asks for a `Roof`, measured now."""


Question = Load | RoofQuestion


def run_load(engine: Engine, load: Load, first_id: int) -> Run:
    """All of it, queued before the first step; sequence ids go on from `first_id`. Raises `RuntimeError`."""
    token_ids: dict[int, list[int]] = {}
    first_token_s: dict[int, float] = {}
    steps_s: list[float] = []
    began_s = time.perf_counter()
    for sequence_id, prompt in enumerate(load.prompts, start=first_id):
        token_ids[sequence_id] = []
        request = GenerationRequest(
            prompt_ids=tuple(prompt),
            sampling=load.sampling,
            max_new_tokens=load.num_new_tokens,
        )
        engine.add(sequence_id, request)
    now_s = began_s
    while engine.has_work:
        step_began_s, had_all = now_s, len(first_token_s) == len(token_ids)
        news = engine.step()
        now_s = time.perf_counter()
        for sequence_id, output in news:
            if output.token_id is None:
                raise RuntimeError(f"a stream failed: {output.error}")
            first_token_s.setdefault(sequence_id, now_s - began_s)
            token_ids[sequence_id].append(output.token_id)
        if had_all and len(news) == len(token_ids):
            steps_s.append(now_s - step_began_s)
    return Run(
        took_s=now_s - began_s,
        first_token_s=list(first_token_s.values()),
        token_ids=list(token_ids.values()),
        step_s=median(steps_s) if steps_s else None,
    )
