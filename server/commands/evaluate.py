"""`verbatim eval`: how well a model tells a text, in bits per byte, and what quantizing it costs.

Decides which tokens are predicted from which; their log-probabilities are the engine's, as a client would get
them. Bits per byte, and not per token, since tokenizers differ.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from model.interface import ModelInfo
from model.sampling.sampling_params import SamplingParams
from server import console, logs
from server.commands.plan import JsonOption
from server.commands.shared import (
    ENGINE_SETTINGS,
    fail,
    from_folder,
    model_folder,
    with_settings,
    worker_client,
)
from server.engine.client import EngineClient
from server.engine.request import GenerationRequest
from server.settings import Settings
from server.text.encoder import EncodeError
from server.text.tokenizer import Tokenizer


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What one model made of the text."""

    model_id: str
    model_dtype: str
    quantization: str | None
    weight_bytes: int
    bits_per_byte: float
    nats_per_token: float
    num_tokens: int  # that were predicted
    num_bytes: int  # which these tokens stand for
    window_tokens: int
    stride: int


class Text(msgspec.Struct, frozen=True):
    """A text's ids; all but the first are predicted."""

    token_ids: tuple[int, ...]
    num_bytes: int  # without those of the first token


@with_settings(*ENGINE_SETTINGS)
def evaluate(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="a text, in UTF-8")],
    model_dir: Annotated[
        Path | None, typer.Option(help="a model folder, or an id on the hub; absent: the embedded model")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="new tokens in each window; absent: half of the context")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many bits a model needs for each byte of a text; with --quantize, before and after."""
    logs.install(settings.log_format, "warning")
    folder = model_folder(model_dir, settings)
    text = _read(file, from_folder(Tokenizer, folder))
    formats = ["none"] if settings.quantize == "none" else ["none", settings.quantize]
    found = [
        asyncio.run(_evaluate(settings.model_copy(update={"quantize": each}), folder, text, stride))
        for each in formats
    ]
    if as_json:
        sys.stdout.write(msgspec.json.encode({"file": file.name, "results": found}).decode() + "\n")
    else:
        console.show_evaluations(
            f"{found[0].model_id}: {file.name}",
            [
                (
                    each.model_dtype
                    if each.quantization is None
                    else f"{each.model_dtype}, {each.quantization}",
                    each.weight_bytes,
                    each.bits_per_byte,
                    each.nats_per_token,
                )
                for each in found
            ],
            f"{found[0].num_tokens:,} tokens, {found[0].num_bytes:,} bytes; windows of "
            f"{found[0].window_tokens:,} tokens, {found[0].stride:,} of them new",
        )


def _read(file: Path, tokenizer: Tokenizer) -> Text:
    try:
        content = file.read_bytes()
        spans = tokenizer.encode_with_offsets(content.decode())
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"{file}: is not valid UTF-8 at byte {error.start}")
    except EncodeError as error:
        fail(f"{file}: {error}")
    if len(spans) < 2:
        fail(f"{file}: has {len(spans)} tokens, must have at least 2")
    # A special token in front stands for nothing of the text.
    first = spans[0].text.encode() if spans[0].stop > spans[0].start else b""
    return Text(tuple(span.id for span in spans), len(content) - len(first))


async def _evaluate(settings: Settings, folder: Path, text: Text, stride: int | None) -> Evaluation:
    client = worker_client(settings, folder)
    await client.start()
    try:
        await client.wait_until_settled()
        if client.info is None:
            fail(client.refusal or "the model cannot be served")
        return await measure(client, client.info, text, stride, settings.max_num_seqs)
    finally:
        await client.stop()


async def measure(
    client: EngineClient, info: ModelInfo, text: Text, stride: int | None, max_num_seqs: int
) -> Evaluation:
    """Ask the engine for the log-probability of every token but the first, a window in each request."""
    size = min(info.max_total_tokens - 1, len(text.token_ids))  # a request must generate a token, too
    step = max(1, size // 2) if stride is None else min(stride, size - 1)
    places = asyncio.Semaphore(max_num_seqs)

    async def window(begin: int, num_new: int) -> float:
        request = GenerationRequest(
            prompt_ids=text.token_ids[begin : begin + size],
            sampling=SamplingParams(temperature=0.0),
            max_new_tokens=1,
            wants_prompt_logprobs=True,
        )
        async with places:
            outputs = await anext(client.submit(request))
        if outputs[-1].error is not None:
            fail(outputs[-1].error)
        return math.fsum(outputs[0].prompt_logprobs[-num_new:])

    sums = await asyncio.gather(*(window(*each) for each in windows(len(text.token_ids), size, step)))
    nats = -math.fsum(sums)
    return Evaluation(
        model_id=info.model_id,
        model_dtype=info.dtype,
        quantization=info.quantization,
        weight_bytes=info.memory.weight_bytes,
        bits_per_byte=nats / math.log(2.0) / max(1, text.num_bytes),
        nats_per_token=nats / (len(text.token_ids) - 1),
        num_tokens=len(text.token_ids) - 1,
        num_bytes=text.num_bytes,
        window_tokens=size,
        stride=step,
    )


def windows(num_tokens: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """The first token of each window and how many of its last tokens are new: all but token 0, once each.

    Every window but the last has `size` tokens. 1 <= step < size <= num_tokens.
    """
    num_seen = 1
    for begin in range(0, num_tokens, step):
        end = min(begin + size, num_tokens)
        yield begin, end - num_seen
        num_seen = end
        if end == num_tokens:
            return
