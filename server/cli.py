"""The command `verbatim`, and the composition root: the only file that knows everybody.

Decides what is built and in which order; what it is built from, settings.py says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from server import console, logs
from server.api.body import parse_body
from server.api.front import Front
from server.api.generation import Generation
from server.api.schemas import GenerateBody
from server.api.translate import translate
from server.app import create_app, server_version
from server.commands.bench import bench
from server.commands.evaluate import evaluate
from server.commands.plan import inspect, plan
from server.commands.shared import (
    ENGINE_SETTINGS,
    SERVER_SETTINGS,
    fail,
    from_folder,
    model_folder,
    with_settings,
    worker_client,
)
from server.connection import affordable_connections
from server.engine.memory import keep_all
from server.errors import ApiError
from server.generation_config import read_generation_defaults
from server.metrics import Metrics
from server.protocol import bounded_protocol
from server.settings import Settings, unknown_variables
from server.shutdown import DrainingServer
from server.text.chat_template import check_templates
from server.text.tokenizer import Tokenizer


def main() -> None:
    """The command."""
    command = typer.Typer(
        name="verbatim",
        help="A language-model inference server whose answers stay the same, bit for bit.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    command.callback()(options)
    command.command()(serve)
    command.command()(generate)
    command.command()(plan)
    command.command()(inspect)
    command.command("eval")(evaluate)
    command.command()(bench)
    command()


def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="say which version this is")
    ] = False,
) -> None:
    """What stands before a command."""
    if version:
        sys.stdout.write(f"verbatim {server_version()}\n")
        raise typer.Exit


# ---- serve ------------------------------------------------------------------------------------------------


@with_settings(*ENGINE_SETTINGS, *SERVER_SETTINGS)
def serve(
    settings: Settings,
    model_dir: Annotated[
        Path | None, typer.Argument(help="a model folder, or an id on the hub; absent: the embedded model")
    ] = None,
) -> None:
    """Serve a model over HTTP. Each flag has an environment name, VERBATIM_ and its own in capitals."""
    began_s = time.monotonic()
    logs.install(settings.log_format, settings.log_level)
    for sentence in unknown_variables():
        logging.getLogger("verbatim").warning(sentence)
    folder = model_folder(model_dir, settings)
    as_text = logs.is_text(settings.log_format)
    loading = console.LoadingBar(as_text=as_text)
    client = worker_client(settings, folder, loading.show)
    from_folder(check_templates, folder)  # before it is asked for
    defaults = from_folder(read_generation_defaults, folder)
    asgi = create_app(settings, client, from_folder(Tokenizer, folder), defaults)
    config = uvicorn.Config(
        asgi,
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(
            settings, asgi.state.front.metrics, affordable_connections(settings.max_connections)
        ),
        log_config=None,
        access_log=False,  # ours is written by server/middleware.py
        server_header=False,
        ws="none",
    )
    server = DrainingServer(config, client, settings.grace_s)

    async def announce() -> None:
        await client.wait_until_settled()
        loading.close()
        if client.info is None:
            server.should_exit = True
        else:
            took_s = time.monotonic() - began_s
            while not server.started:  # the port, if it is to be chosen, is known only then
                await asyncio.sleep(0.01)
            keep_all()
            console.announce(client.info, _address(server, settings), took_s, as_text=as_text)

    async def run() -> None:
        announcing = asyncio.create_task(announce())
        await server.serve()
        announcing.cancel()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:  # uvloop, where there is one
        runner.run(run())
    if client.info is None and client.refusal is not None:
        fail(client.refusal)


def _address(server: uvicorn.Server, settings: Settings) -> str:
    """Where the server listens, with the port that was really taken."""
    port = server.servers[0].sockets[0].getsockname()[1] if server.servers else settings.port
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"


# ---- generate ---------------------------------------------------------------------------------------------


@with_settings(*ENGINE_SETTINGS)
def generate(
    settings: Settings,
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    model_dir: Annotated[
        Path | None, typer.Option(help="a model folder, or an id on the hub; absent: the embedded model")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="absent: the model's own, or what fits")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; absent: the model's own")] = None,
    top_k: Annotated[int | None, typer.Option(help="draw from so many")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw from so much of the mass")] = None,
    min_p: Annotated[float | None, typer.Option(help="draw from at least this part of the best")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="above 1: repeat less")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed, the same words")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end at this text; may be given again")] = None,
) -> None:
    """Generate on this terminal, without a server: the prompt, and what follows, word by word."""
    logs.install(settings.log_format, "warning")
    wishes = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": stop or None,
    }
    folder = model_folder(model_dir, settings)
    try:
        prompt.encode()
        asyncio.run(_generate(settings, folder, {"inputs": prompt, "parameters": wishes}))
    except UnicodeEncodeError:
        fail("the prompt is not valid UTF-8")
    except BrokenPipeError:
        raise  # the reader has what it wanted, as `head` has: typer ends without a word
    except (ApiError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _generate(settings: Settings, folder: Path, body: dict[str, Any]) -> None:
    wish = parse_body(GenerateBody, json.dumps(body).encode())  # before a model is loaded for it
    client = worker_client(settings, folder)
    await client.start()
    try:
        await client.wait_until_settled()
        if client.refusal is not None:
            fail(client.refusal)
        front = Front(
            settings=settings,
            client=client,
            tokenizer=from_folder(Tokenizer, folder),
            metrics=Metrics(client.stats),
            version=server_version(),
            defaults=from_folder(read_generation_defaults, folder),
        )
        job = translate(wish, front, is_stream=True)
        generation = Generation(job, client.submit(job.request), front, time.monotonic())
        sys.stdout.write(body["inputs"])
        async for outputs in generation.stream:
            for told in generation.feed(outputs):
                if not told["token"]["special"]:
                    sys.stdout.write(told["token"]["text"])
            sys.stdout.flush()
        sys.stdout.write("\n")
        if generation.error is not None:
            raise generation.error
    finally:
        await client.stop()
