"""The worker process: loads a model, then turns commands into steps until the front goes away.

Run as `python -m server.engine.worker SOCKET_FD HEARTBEAT_FD`. It has one thread of its own, no HTTP and
no event loop. With the front gone there is nobody to compute for: it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model.interface import Model, SampleRequest, StepItem
from model.runner import ModelRunner, RunnerOptions
from model.sampling.sampling_params import SamplingParams
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.frames import (
    Abort,
    Command,
    CommandReader,
    Event,
    Loading,
    Logged,
    Ready,
    Refused,
    Stepped,
    Submit,
    WorkerConfig,
    encode,
)
from server.engine.heartbeat import Heartbeat
from server.engine.memory import keep_all
from server.engine.request import EngineStats
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence as EngineSequence

_QUIET_S = 1.0  # without work, before the engine checks itself


class Worker:
    """Joins an engine to the socket that its commands come from."""

    def __init__(self, connection: socket.socket, heartbeat: Heartbeat) -> None:
        self.connection = connection
        self.commands = CommandReader(connection)
        self.heartbeat = heartbeat
        self._last_stats: EngineStats | None = None

    def run(self) -> None:
        """Load, then serve. Returns when the front is gone or the model cannot be served."""
        config, pending = self._first_command()
        if config is None:
            return
        try:
            model = load_model(config, self._tell_loading, self.heartbeat.beat)
            engine = build_engine(model, config, self._begin_step)
            generate_one_token(model)
        except Exception as error:
            self.tell(refusal(error))
            return
        keep_all()
        self.tell(Ready(model.info))
        self.serve(engine, pending)

    def serve(self, engine: Engine, commands: list[Command] | None) -> None:
        """Obey and step, until the front is gone (commands is None)."""
        while commands is not None:
            for command in commands:
                obey(engine, command)
            news = engine.step() if engine.has_work else []
            self.heartbeat.end_step()
            stats = engine.stats()
            if news or stats != self._last_stats:
                self.tell(Stepped(news, stats))
                self._last_stats = stats
            commands = self.commands.read() if engine.has_work else self._rest(engine)

    def tell(self, event: Event) -> None:
        """Send an event to the front."""
        self.connection.sendall(encode(event))

    def _rest(self, engine: Engine) -> list[Command] | None:
        """Wait for commands; use the first quiet moment to see that nothing was lost."""
        commands = self.commands.read(_QUIET_S)
        if commands == []:
            engine.scheduler.check_integrity()
            commands = self.commands.read(None)
        return commands

    def _begin_step(self, sequences: Sequence[EngineSequence]) -> None:
        self.heartbeat.begin_step([sequence.id for sequence in sequences])

    def _first_command(self) -> tuple[WorkerConfig | None, list[Command]]:
        while (commands := self.commands.read(None)) is not None:
            if commands:
                first, *others = commands
                if not isinstance(first, WorkerConfig):
                    raise TypeError(f"the first command must be a WorkerConfig, is {type(first).__name__}")
                return first, others
        return None, []

    def _tell_loading(self, done: int, total: int) -> None:
        self.heartbeat.beat()
        self.tell(Loading(done, total))


class LogToFront(logging.Handler):
    """Sends what is logged here to the front, whose log has one format."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(logging.INFO)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line, its traceback included."""
        self._worker.tell(Logged(record.levelno, self.format(record)))


def load_model(
    config: WorkerConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_layer: Callable[[], None] = lambda: None,
) -> ModelRunner:
    """The model that the front asked for. Raises `ValueError` with one line for its user."""
    return ModelRunner.load(Path(config.model_dir), runner_options(config), on_progress, on_layer)


def runner_options(config: WorkerConfig) -> RunnerOptions:
    """The runner's part of the configuration."""
    return RunnerOptions(
        model_id=config.model_id,
        dtype=config.dtype,
        quantize=config.quantize,
        device=config.device,
        kernels=config.kernels,
        num_threads=config.num_threads,
        kv_cache_tokens=config.kv_cache_tokens,
        max_batch_tokens=config.max_batch_tokens,
        max_num_seqs=config.max_num_seqs,
        speculative_tokens=config.speculative_tokens,
    )


def refusal(error: Exception) -> Refused:
    """One line for the user, whatever a folder can make a library do. A `ValueError` speaks for itself."""
    if isinstance(error, ValueError):
        return Refused(str(error))
    reason = " ".join(str(error).split())[:300]
    return Refused(f"the model cannot be loaded: {type(error).__name__}: {reason}")


def generate_one_token(model: Model) -> None:
    """A first step, so that "ready" means that the model computes, and its first user waits for no set-up."""
    request = SampleRequest(params=SamplingParams(temperature=0.0), token_ids=[0], num_prompt_tokens=1)
    [output] = model.execute([StepItem(token_ids=[0], start=0, block_table=[0], sample=request)])
    if output.error is not None:
        raise ValueError(f"the model's first token failed: {output.error}")


def build_engine(
    model: Model,
    config: WorkerConfig,
    on_plan: Callable[[Sequence[EngineSequence]], None] = lambda sequences: None,
) -> Engine:
    """An engine with all of the model's cache."""
    blocks = BlockManager(model.info.num_blocks, model.info.block_size)
    scheduler = Scheduler(blocks, config.max_batch_tokens, config.max_num_seqs, config.speculative_tokens)
    return Engine(model, scheduler, on_plan=on_plan)


def obey(engine: Engine, command: Command) -> None:
    """One command."""
    match command:
        case Submit(sequence_id, request, progress):
            engine.add(sequence_id, request, progress)
        case Abort(sequence_id):
            engine.abort(sequence_id)
        case WorkerConfig():
            raise TypeError("a worker is configured once")


def main() -> None:
    """The process."""
    # Ctrl-C reaches the whole terminal group, and a supervisor's SIGTERM may reach every process of the
    # service: the front decides what they mean, and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = Worker(socket.socket(fileno=int(sys.argv[1])), Heartbeat(int(sys.argv[2])))
    logging.basicConfig(handlers=[LogToFront(worker)], level=logging.INFO)
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the front is gone: nothing is left to tell anyone
    except Exception:
        logging.exception("the engine failed")
        os._exit(1)  # not by way of clean-ups that might fail once more


if __name__ == "__main__":
    main()
