"""The front's door to a real worker process with a tiny model: real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from model.sampling.sampling_params import SamplingParams
from server.engine.client import EngineOverloaded, EngineUnavailable, TokenStream
from server.engine.frames import WorkerConfig
from server.engine.request import GenerationRequest, TokenOutput
from server.engine.worker_client import Speed, WorkerClient
from tests.model.folders import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_folder(path, max_positions=4096)
    return path


def config_for(folder: Path) -> WorkerConfig:
    return WorkerConfig(
        model_dir=str(folder), model_id="tiny", num_threads=1, max_num_seqs=4, max_batch_tokens=32
    )


@asynccontextmanager
async def ready_client(folder: Path, max_waiting: int = 100) -> AsyncIterator[WorkerClient]:
    client = WorkerClient(config_for(folder), max_waiting)
    await client.start()
    try:
        await client.wait_until_settled()
        assert client.status().is_ready, client.status()
        yield client
    finally:
        await client.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 50))


def request(first_id: int = 5, max_new_tokens: int = 20, seed: int = 1) -> GenerationRequest:
    return GenerationRequest(
        prompt_ids=(first_id, 6, 7), sampling=SamplingParams(seed=seed), max_new_tokens=max_new_tokens
    )


async def collect(stream: TokenStream) -> list[TokenOutput]:
    return [output async for outputs in stream for output in outputs]


def bits(outputs: list[TokenOutput]) -> list[tuple[int | None, float]]:
    return [(output.token_id, output.logprob) for output in outputs]


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


def test_streams_together_get_what_each_gets_alone(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            alone = [bits(await collect(client.submit(request(i, 10 + i)))) for i in range(12)]
            streams = [client.submit(request(i, 10 + i)) for i in range(12)]
            together = [bits(outputs) for outputs in await asyncio.gather(*map(collect, streams))]
            assert together == alone
            assert [len(outputs) for outputs in alone] == [10 + i for i in range(12)]

    run(scenario)


def test_before_it_is_ready_it_refuses(folder: Path) -> None:
    async def scenario() -> None:
        client = WorkerClient(config_for(folder), 10)
        await client.start()
        assert client.status().is_live
        assert not client.status().is_ready
        assert client.info is None
        with pytest.raises(EngineUnavailable, match="loading"):
            client.submit(request())
        await client.stop()

    run(scenario)


def test_closing_a_stream_frees_its_place_and_its_blocks(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, max_waiting=0) as client:
            streams = [client.submit(request(i, 4000)) for i in range(4)]
            with pytest.raises(EngineOverloaded, match="the limit is 4") as caught:
                client.submit(request())
            assert caught.value.retry_after_s > 0
            for stream in streams:
                await anext(stream)
                stream.close()
                stream.close()
            client.submit(request()).close()
            await until(lambda: client.stats().num_free_blocks == client.stats().num_blocks)
            assert client.stats().num_steps < 3000, "none of the four ran to its end"

    run(scenario)


def test_a_reader_that_waits_gets_everything_in_one_piece(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            stream = client.submit(request())
            await until(lambda: stream.num_outstanding == 0)
            outputs = await anext(stream)
            assert len(outputs) == 20
            assert await collect(stream) == []

    run(scenario)


def test_a_cancelled_look_loses_nothing(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            expected = bits(await collect(client.submit(request())))
            stream, seen = client.submit(request()), []
            while True:
                try:
                    async with asyncio.timeout(0.0005):
                        seen += await anext(stream)
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    break
            assert bits(seen) == expected

    run(scenario)


def test_when_the_worker_dies_every_stream_ends_with_an_error(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            streams = [client.submit(request(i, 4000)) for i in range(6)]
            await anext(streams[0])
            os.kill(client._process.pid, signal.SIGKILL)
            for outputs in await asyncio.gather(*map(collect, streams)):
                assert outputs[-1].finish_reason == "error"
            assert not client.status().is_live
            with pytest.raises(EngineUnavailable, match="the engine is down"):
                client.submit(request())

    run(scenario)


def test_a_worker_that_hangs_over_work_is_not_ready(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            client.silence_limit_s = 0.3
            stream = client.submit(request(max_new_tokens=2000))
            await anext(stream)
            os.kill(client._process.pid, signal.SIGSTOP)
            await until(lambda: not client.status().is_ready)
            assert client.status().reason == "the engine does not answer"
            os.kill(client._process.pid, signal.SIGCONT)
            assert (await collect(stream))[-1].finish_reason == "length"
            await until(lambda: client.status().is_ready)

    run(scenario)


def test_a_worker_that_hangs_while_idle_is_found_by_the_next_request(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            client.silence_limit_s = 0.3
            os.kill(client._process.pid, signal.SIGSTOP)
            await asyncio.sleep(0.5)
            assert client.status().is_ready, "an idle worker may be silent"
            stream = client.submit(request())
            await until(lambda: not client.status().is_ready)
            with pytest.raises(EngineUnavailable, match="the engine does not answer"):
                client.submit(request())
            os.kill(client._process.pid, signal.SIGCONT)
            assert len(await collect(stream)) == 20

    run(scenario)


def test_what_cannot_be_sent_holds_no_place(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, max_waiting=0) as client:
            for _ in range(10):
                with pytest.raises(OverflowError):
                    client.submit(request(first_id=2**64))
            assert len(await collect(client.submit(request()))) == 20

    run(scenario)


def test_draining_lets_streams_end_and_takes_no_more(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            stream = client.submit(request(max_new_tokens=300))
            await anext(stream)
            client.drain()
            assert client.status().reason == "draining"
            assert client.status().is_live
            with pytest.raises(EngineUnavailable, match="draining"):
                client.submit(request())
            idle = asyncio.create_task(client.wait_until_idle())
            assert (await collect(stream))[-1].finish_reason == "length"
            await idle

    run(scenario)


def test_a_worker_that_dies_while_loading_is_a_refusal(folder: Path) -> None:
    async def scenario() -> None:
        client = WorkerClient(config_for(folder), 10)
        await client.start()
        os.kill(client._process.pid, signal.SIGKILL)
        await client.wait_until_settled()
        assert client.refusal == "the engine worker ended with status -9 while it loaded the model"
        await client.stop()

    run(scenario)


def test_a_bug_in_the_client_is_no_endless_loading(folder: Path) -> None:
    async def scenario() -> None:
        client = WorkerClient(config_for(folder), 10, on_progress=lambda done, total: 1 // 0)  # type: ignore[arg-type]
        await client.start()
        await client.wait_until_settled()
        assert not client.status().is_live
        await client.stop()

    run(scenario)


def test_signals_to_the_whole_group_do_not_end_the_worker(folder: Path) -> None:
    """Ctrl-C on a terminal, or a supervisor that signals every process: the front decides."""

    async def scenario() -> None:
        async with ready_client(folder) as client:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(client._process.pid, number)
            assert len(await collect(client.submit(request()))) == 20

    run(scenario)


def test_a_model_that_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_folder(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        client = WorkerClient(config_for(tmp_path), 10)
        await client.start()
        await client.wait_until_settled()
        assert client.refusal == "config.json: model_type 'None' is not known; known: verbatim"
        assert not client.status().is_live
        await client.stop()

    run(scenario)


def test_the_worker_ends_with_its_front(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            client.submit(request(max_new_tokens=4000))
        assert client._process.returncode == 0

    run(scenario)


def test_speed_counts_the_time_under_work_only() -> None:
    now_s = 0.0
    speed = Speed(lambda: now_s)
    for _ in range(20):
        now_s += 0.1
        speed.count(5)
    assert speed.tokens_per_s == pytest.approx(50)
    now_s += 3600
    speed.count(50)
    assert speed.tokens_per_s == pytest.approx(50), "an idle hour counts as one second"
