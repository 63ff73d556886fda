"""What the commands share: a flag for each setting, the model's folder, the worker's orders, the last word.

Decides nothing of what a command does.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from pydantic.fields import FieldInfo

from server import console
from server.commands import hub
from server.engine.frames import Refused, WorkerConfig
from server.engine.read_ahead import read_ahead
from server.engine.watchdog import Patience
from server.engine.worker_client import WorkerClient
from server.settings import Settings, SettingsError, load_settings

T = TypeVar("T")

EMBEDDED_MODEL = Path(__file__).resolve().parents[2] / "weights"  # beside the packages, installed or not


def fail(message: str) -> NoReturn:
    """End the command with one line and status 2."""
    console.say_error(message)
    raise typer.Exit(2)


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """A setting as a flag: its name, type, default and line of why are those of settings.py."""
    default = "" if field.default in (None, ()) else f" (default: {field.default})"
    option = typer.Option(
        f"--{name.replace('_', '-')}", help=f"{field.description}{default}", show_default=False
    )
    kind: Any = str if name in ("config", "api_keys") else field.annotation
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each of these settings, and hand it the `Settings` that result."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            flags = {name: value for name in names if (value := given.pop(name)) is not None}
            try:
                settings = load_settings(**flags)
            except SettingsError as error:
                fail(str(error))
            command(settings, **given)

        own = [
            p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"
        ]
        flags = [_option(name, Settings.model_fields[name]) for name in names]
        signature = inspect.Signature([*own, *flags])
        run.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


ENGINE_SETTINGS = (
    "config", "dtype", "quantize", "device", "kernels", "num_threads", "kv_cache_tokens", "max_batch_tokens",
    "max_num_seqs", "speculative_tokens", "watchdog_s", "max_worker_deaths",
)  # fmt: skip
SERVER_SETTINGS = tuple(n for n in Settings.model_fields if n not in ("model_dir", *ENGINE_SETTINGS))


def model_folder(given: Path | None, settings: Settings) -> Path:
    """The folder that the command or the settings name, here or on the hub; or the embedded one."""
    named = given or settings.model_dir or EMBEDDED_MODEL
    if not named.is_dir():
        if not hub.is_model_id(str(named)):
            fail(f"{named}: there is no such folder")
        try:
            named = hub.fetch(str(named))
        except hub.HubError as error:
            fail(str(error))
    return named.resolve()


def worker_config(settings: Settings, folder: Path) -> WorkerConfig:
    """What a worker is told first."""
    return WorkerConfig(
        model_dir=str(folder),
        model_id="verbatim-storyteller" if folder == EMBEDDED_MODEL else hub.id_of(folder) or folder.name,
        dtype=settings.dtype,
        quantize=settings.quantize,
        device=settings.device,
        kernels=settings.kernels,
        num_threads=settings.num_threads,
        kv_cache_tokens=settings.kv_cache_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_num_seqs=settings.max_num_seqs,
        speculative_tokens=settings.speculative_tokens,
    )


def worker_client(
    settings: Settings, folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> WorkerClient:
    """An engine in a process of its own, which begins to load; nobody listens to it yet."""
    read_ahead(folder)
    patience = Patience(watchdog_s=settings.watchdog_s, max_deaths=settings.max_worker_deaths)
    return WorkerClient(worker_config(settings, folder), settings.max_waiting, on_progress, patience)


def from_folder(read: Callable[[Path], T], folder: Path) -> T:
    """What is read from a model's folder, or the command's end."""
    try:
        return read(folder)
    except ValueError as error:
        fail(str(error))


def ask_planner(question: str, config: WorkerConfig, answer: type[T]) -> T:
    """What a worker with this configuration would load, by a process that looks; or the command's end."""
    process = subprocess.run(
        [sys.executable, "-m", "server.engine.planner", question],
        input=msgspec.json.encode(config),
        stdout=subprocess.PIPE,
        check=False,
        start_new_session=True,  # Ctrl-C on the terminal is ours to handle
    )
    if process.returncode == 2:
        fail(msgspec.json.decode(process.stdout, type=Refused).reason)
    if process.returncode:
        fail(f"the process that looks at the folder ended with status {process.returncode}")
    return msgspec.json.decode(process.stdout, type=answer)
