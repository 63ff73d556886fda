"""The front's door to a real worker process with a tiny model: real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.torture.faulty_worker import Fault, seed_of
from model.sampling.sampling_params import SamplingParams
from server.engine.client import EngineOverloaded, EngineUnavailable, TokenStream
from server.engine.frames import WorkerConfig
from server.engine.request import GenerationRequest, TokenOutput
from server.engine.speed import Speed
from server.engine.watchdog import Patience
from server.engine.worker_client import WorkerClient
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
async def ready_client(folder: Path, max_waiting: int = 100, **options: Any) -> AsyncIterator[WorkerClient]:
    client = WorkerClient(config_for(folder), max_waiting, **options)
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


def test_a_worker_may_be_ready_before_anybody_listens(folder: Path) -> None:
    """It is born with the client. uvloop hands over what lies there sooner than asyncio's own loop."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        client = WorkerClient(config_for(folder), 10)
        said = partial(client._worker._socket.recv, 2**20, socket.MSG_PEEK)
        while b"ready" not in await asyncio.to_thread(said):
            await asyncio.sleep(0.02)
        await client.start()
        try:
            await client.wait_until_settled()
            assert len(await collect(client.submit(request()))) == 20
        finally:
            await client.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 50))


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


def test_a_reader_that_waits_gets_everything_in_few_pieces(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            stream = client.submit(request())
            await until(lambda: stream.num_outstanding == 0)
            outputs = await anext(stream)
            assert len(outputs) == 20
            assert await collect(stream) == []
            many = client.submit(request(max_new_tokens=200))
            await until(lambda: many.num_outstanding == 0)
            assert [len(outputs) async for outputs in many] == [32] * 6 + [8]

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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_when_the_worker_dies_every_stream_goes_on_with_the_same_bits(folder: Path, number: int) -> None:
    """More of them than can run at once; some have begun and some wait."""

    async def scenario() -> None:
        async with ready_client(folder) as client:
            expected = [bits(await collect(client.submit(request(i, 150)))) for i in range(10)]
            streams = [client.submit(request(i, 150)) for i in range(10)]
            await anext(streams[3])
            pid = client.worker_pid
            os.kill(pid, number)
            await until(lambda: not client.status().is_ready)
            assert client.status().is_live
            with pytest.raises(EngineUnavailable, match="restarting"):
                client.submit(request())
            outputs = await asyncio.gather(*map(collect, streams))
            seen = bits(outputs[3])
            assert seen == expected[3][-len(seen) :]
            del outputs[3], expected[3]
            assert [bits(its) for its in outputs] == expected
            assert client.worker_pid != pid
            assert client.stats().num_restarts == 1

    run(scenario)


def test_two_deaths_in_a_row_lose_nothing(folder: Path) -> None:
    """The second one while the first of the streams is on its trial, or the worker still loads."""

    async def scenario() -> None:
        async with ready_client(folder) as client:
            expected = [bits(await collect(client.submit(request(i, 150)))) for i in range(4)]
            streams = [client.submit(request(i, 150)) for i in range(4)]
            await until(lambda: all(len(stream.token_ids) > 20 for stream in streams))
            os.kill(client.worker_pid, signal.SIGKILL)
            await until(lambda: client.stats().num_restarts == 1)
            os.kill(client.worker_pid, signal.SIGKILL)
            await until(lambda: client.stats().num_restarts == 2)
            assert [bits(outputs) for outputs in await asyncio.gather(*map(collect, streams))] == expected

    run(scenario)


def test_choices_and_prompt_logprobs_survive_a_death(folder: Path) -> None:
    async def scenario() -> None:
        wish = msgspec.structs.replace(request(9, 200), wants_prompt_logprobs=True)
        async with ready_client(folder) as client:
            expected = [await collect(stream) for stream in client.submit_choices(wish, 3)]
            assert len({tuple(bits(outputs)) for outputs in expected}) == 3
            streams = client.submit_choices(wish, 3)
            await until(lambda: len(streams[2].token_ids) > 3)
            os.kill(client.worker_pid, signal.SIGKILL)
            outputs = await asyncio.gather(*map(collect, streams))
            assert list(map(bits, outputs)) == list(map(bits, expected))
            assert [len(its[0].prompt_logprobs) for its in outputs] == [2, 0, 0], "the first tells for all"
            assert outputs[0][0].prompt_logprobs == expected[0][0].prompt_logprobs

    run(scenario)


def test_a_stream_that_is_closed_while_the_worker_is_down_is_gone(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            streams = [client.submit(request(i, 4000)) for i in range(4)]
            await until(lambda: all(stream.token_ids for stream in streams))
            os.kill(client.worker_pid, signal.SIGKILL)
            await until(lambda: not client.status().is_ready)
            for stream in streams:
                stream.close()
            await until(lambda: client.status().is_ready)
            assert len(await collect(client.submit(request()))) == 20
            assert client.stats().num_running == 0

    run(scenario)


def with_alternatives(max_new_tokens: int) -> GenerationRequest:
    """A stream that is paused when 120 of its tokens are not read."""
    sampling = SamplingParams(seed=1, top_n_tokens=5)
    return msgspec.structs.replace(request(max_new_tokens=max_new_tokens), sampling=sampling)


def test_a_token_with_few_alternatives_leaves_the_next_ones_theirs() -> None:
    """A cut may leave fewer than were asked for; the reader looks after several tokens."""
    tops = [((1, -0.5), (2, -1.0)), ((3, 0.0),), (), ((4, -0.1), (5, -2.0), (6, -3.0))]

    async def scenario() -> None:
        sampling = SamplingParams(seed=1, top_n_tokens=3)
        stream = TokenStream(msgspec.structs.replace(request(), sampling=sampling), lambda: None)
        for first in range(0, len(tops), 2):
            for top in tops[first:]:
                stream.put(TokenOutput(token_id=7, top=top))
            assert [output.top for output in await anext(stream)] == tops[first:]

    run(scenario)


async def until_paused(client: WorkerClient, stream: TokenStream) -> None:
    await until(lambda: stream.is_behind and client.stats().num_running == 0)
    assert client.stats().num_waiting == 1
    assert client.stats().num_free_blocks == client.stats().num_blocks


def test_a_reader_that_is_far_behind_holds_no_place_and_loses_nothing(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, patience=Patience(watchdog_s=0.5)) as client:
            expected = await collect(client.submit(with_alternatives(400)))
            stream = client.submit(with_alternatives(400))
            await until_paused(client, stream)
            await asyncio.sleep(1.0)  # a worker that has none but paused streams may be silent
            assert 120 <= len(stream.token_ids) < 135, "it stops, but for what was on its way"
            seen: list[TokenOutput] = []
            while len(seen) < 100:
                seen += await anext(stream)
            await until_paused(client, stream)
            assert len(stream.token_ids) > 200, "it goes on for who has caught up"
            seen += await collect(stream)
            assert bits(seen) == bits(expected)
            assert [output.top for output in seen] == [output.top for output in expected]
            assert client.stats().num_restarts == 0

    run(scenario)


def test_a_reader_that_reads_while_its_last_tokens_are_on_their_way_gets_none_twice(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            expected = bits(await collect(client.submit(with_alternatives(300))))
            stream = client.submit(with_alternatives(300))
            seen: list[TokenOutput] = []
            put, must_read = stream.put, asyncio.Event()

            def put_and_wake(output: TokenOutput) -> None:
                put(output)
                if stream.is_behind or output.finish_reason:
                    must_read.set()  # before the socket is read again

            stream.put = put_and_wake  # type: ignore[method-assign]
            await must_read.wait()
            async for outputs in stream:
                seen += outputs
                if stream.num_outstanding and len(stream.token_ids) - len(seen) <= 60:  # it goes on by now
                    must_read.clear()
                    await must_read.wait()
            assert bits(seen) == expected

    run(scenario)


def test_a_paused_stream_survives_a_death_and_a_drain(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            expected = bits(await collect(client.submit(with_alternatives(300))))
            stream = client.submit(with_alternatives(300))
            await until_paused(client, stream)
            os.kill(client.worker_pid, signal.SIGKILL)
            await until(lambda: client.stats().num_restarts == 1 and client.status().is_ready)
            assert client.stats().num_running == 0
            client.drain()
            idle = asyncio.create_task(client.wait_until_idle())
            assert bits(await collect(stream)) == expected
            await idle

    run(scenario)


def test_a_paused_stream_that_is_closed_is_gone(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, max_waiting=0) as client:
            streams = [client.submit(with_alternatives(4000)) for _ in range(4)]
            await until(lambda: client.stats().num_waiting == 4)
            with pytest.raises(EngineOverloaded):
                client.submit(request())
            for stream in streams:
                stream.close()
            assert client.stats().num_waiting == 0
            assert len(await collect(client.submit(request()))) == 20

    run(scenario)


def test_a_worker_that_hangs_over_work_is_replaced(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, patience=Patience(watchdog_s=2.0)) as client:
            expected = bits(await collect(client.submit(request(max_new_tokens=300))))
            stream = client.submit(request(max_new_tokens=300))
            await until(lambda: len(stream.token_ids) > 10)
            os.kill(client.worker_pid, signal.SIGSTOP)
            await until(lambda: not client.status().is_ready)
            assert (client.status().reason, client.status().is_live) == ("silent", True)
            late = client.submit(request(max_new_tokens=300))
            assert bits(await collect(stream)) == expected
            assert bits(await collect(late)) == expected
            assert client.stats().num_restarts == 1

    run(scenario)


def test_a_worker_that_hangs_while_idle_is_found_by_the_next_request(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, patience=Patience(watchdog_s=0.5)) as client:
            os.kill(client.worker_pid, signal.SIGSTOP)
            await asyncio.sleep(1.0)
            assert client.status().is_ready, "an idle worker may be silent"
            assert len(await collect(client.submit(request()))) == 20
            assert client.stats().num_restarts == 1

    run(scenario)


def test_a_poisonous_request_is_ended_and_its_neighbours_are_not(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder, worker_module="bench.torture.faulty_worker") as client:
            expected = [bits(await collect(client.submit(request(i, 100)))) for i in range(3)]
            streams = [client.submit(request(i, 100)) for i in range(3)]
            seeds = [seed_of(Fault.ABORT, after_tokens=2, number=number) for number in range(2)]
            poisonous = [client.submit(request(9, 100, seed)) for seed in seeds]
            outputs = await asyncio.gather(*map(collect, streams + poisonous))
            assert list(map(bits, outputs[:3])) == expected
            reason = "the engine died each time that it computed this request"
            assert [(len(its), its[-1].finish_reason, its[-1].error) for its in outputs[3:]] == [
                (3, "error", reason)
            ] * 2
            assert client.status().is_ready

    run(scenario)


def test_a_worker_that_always_dies_is_given_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        patience = Patience(max_deaths=4, first_pause_s=0.1)
        async with ready_client(folder, patience=patience) as client:
            client.worker_module = "tests.server.engine.there_is_no_such_worker"
            stream = client.submit(request(max_new_tokens=4000))
            await anext(stream)
            os.kill(client.worker_pid, signal.SIGKILL)
            outputs = await collect(stream)
            assert (outputs[-1].finish_reason, outputs[-1].error) == (
                "error",
                "the engine failed while generating",
            )
            assert not client.status().is_live
            with pytest.raises(EngineUnavailable, match="the engine is down"):
                client.submit(request())

    run(scenario)
    *deaths, end = [each for each in caplog.records if each.levelname == "ERROR"]
    assert [f"({number} in a row)" in each.message for number, each in enumerate(deaths, 1)] == [True] * 4
    assert end.message == "4 engine workers died in a row: no other is started"
    at_s = [death.created for death in deaths]
    assert at_s[2] - at_s[1] >= 0.1, "the second in a row: a pause"
    assert at_s[3] - at_s[2] >= 0.2, "the third: twice as long"


def test_an_answer_is_not_continued_with_another_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_folder(tmp_path, max_positions=4096)
        async with ready_client(tmp_path) as client:
            stream = client.submit(request(max_new_tokens=4000))
            await anext(stream)
            (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
            os.kill(client.worker_pid, signal.SIGKILL)
            assert "the model's files have changed" in str((await collect(stream))[-1].error)
            assert not client.status().is_live

    run(scenario)


def test_a_deadline_ends_a_stream_with_what_there_is(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            stream = client.submit(request(max_new_tokens=4000))
            stream.end_at(time.monotonic() + 0.3)
            outputs = await collect(stream)
            expected = bits(await collect(client.submit(request(max_new_tokens=len(outputs)))))
            assert (outputs[-1].token_id, outputs[-1].finish_reason) == (None, "deadline")
            assert 0 < len(outputs) < 4000
            assert bits(outputs[:-1]) == expected[:-1]
            await until(lambda: client.stats().num_running == 0)

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
        os.kill(client.worker_pid, signal.SIGKILL)
        await client.wait_until_settled()
        assert client.refusal == "the engine worker was killed by SIGKILL while it loaded the model"
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
                os.kill(client.worker_pid, number)
            assert len(await collect(client.submit(request()))) == 20

    run(scenario)


def test_a_model_that_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_folder(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        client = WorkerClient(config_for(tmp_path), 10)
        await client.start()
        await client.wait_until_settled()
        assert client.refusal is not None
        assert client.refusal.startswith("config.json: model_type 'None' is not known; known: bloom, ")
        assert "\n" not in client.refusal
        assert not client.status().is_live
        await client.stop()

    run(scenario)


def test_the_worker_ends_with_its_front(folder: Path) -> None:
    async def scenario() -> None:
        async with ready_client(folder) as client:
            client.submit(request(max_new_tokens=4000))
            pid = client.worker_pid
        assert not Path(f"/proc/{pid}").exists()

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
