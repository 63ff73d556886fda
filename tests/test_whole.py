"""The whole, from the command line to the last byte of a stream: real processes, sockets and signals."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from huggingface_hub import InferenceClient
from text_generation import Client

from bench.checkpoint import write
from bench.load import peak_bytes
from bench.torture.wire import request
from server.engine.worker import refusal
from tests.model.folders import write_folder
from tests.model.test_hostile_folders import BROKEN
from tests.server.live import eventually, parse_events
from tests.whole import STORY, Server, command, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as it:
        yield it


def children_of(server: Server) -> list[str]:
    """The ids of its child processes: the worker's."""
    return subprocess.check_output(["pgrep", "-P", str(server.process.pid)], text=True).split()


def tell(server: Server, body: dict[str, Any] = STORY) -> list[dict[str, Any]]:
    """A stream's events."""
    response = server.http.post("/generate", json=body | {"stream": True})
    assert response.status_code == 200, response.text
    return parse_events(response.content)


def test_the_readme_s_request_streams_a_story(server: Server) -> None:
    events = tell(server)
    assert [event["index"] for event in events] == list(range(1, 61))
    text = "".join(event["token"]["text"] for event in events)
    assert events[-1]["generated_text"] == text
    assert len(text) > 100
    assert text.isprintable() or "\n" in text


def test_an_answer_is_the_same_word_for_word_every_time(server: Server) -> None:
    answers = [server.generate() for _ in range(3)]
    streamed = tell(server)
    tokens = [event["token"] for event in streamed]
    assert all(answer["details"]["tokens"] == tokens for answer in answers)
    assert all(answer["generated_text"] == streamed[-1]["generated_text"] for answer in answers)


def test_two_clients_at_once_get_what_each_gets_alone(server: Server) -> None:
    """And 24 at once, of several kinds, some of them waiting for a place."""
    wishes: list[dict[str, Any]] = [{"seed": seed, "max_new_tokens": 20 + seed} for seed in range(24)]
    alone = [server.generate(**wish) for wish in wishes]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda wish: server.generate(**wish), wishes))
    for one, other in zip(alone, together, strict=True):
        assert one["generated_text"] == other["generated_text"]
        assert one["details"]["tokens"] == other["details"]["tokens"]


def test_a_seed_that_the_server_drew_gives_the_same_answer_again(server: Server) -> None:
    body: dict[str, Any] = {"inputs": "The king", "parameters": {"temperature": 1.0, "max_new_tokens": 20}}
    drawn = server.generate(body)
    seed = drawn["details"]["seed"]
    assert 0 <= seed < 2**53
    again = server.generate(body, seed=seed)
    assert again["details"]["tokens"] == drawn["details"]["tokens"]


def test_the_log_probabilities_of_the_prompt_are_those_of_generation(server: Server) -> None:
    """What was generated greedily, given as a prompt, has the same log-probabilities, bit for bit."""
    asked: dict[str, Any] = {"inputs": "The king", "parameters": {"max_new_tokens": 20}}
    first = server.generate(asked, logprobs_mode="raw")
    generated = first["details"]["tokens"]
    info = server.http.post("/tokenize", json={"inputs": "The king"}).json()
    ids = [token["id"] for token in info] + [token["id"] for token in generated]
    body: dict[str, Any] = {"inputs": ids, "parameters": {"max_new_tokens": 1}}
    prefill = server.generate(body, decoder_input_details=True)["details"]["prefill"]
    assert prefill[0]["logprob"] is None
    assert [token["logprob"] for token in prefill[len(info) :]] == [token["logprob"] for token in generated]


def test_a_client_that_leaves_in_mid_stream_frees_its_blocks(server: Server) -> None:
    assert eventually(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    body = {"inputs": "The", "parameters": {"max_new_tokens": 450, "ignore_eos": True}, "stream": True}
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + content)
        received = b""
        while b"\nid: 3\n" not in received:
            received += connection.recv(4096)
        assert server.metric("vllm:kv_cache_usage_perc") > 0
        num_steps = server.metric("verbatim_engine_steps_total")
    assert eventually(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    assert server.metric("verbatim_engine_steps_total") - num_steps < 300, "it did not run to its end"


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # text_generation's own
def test_the_official_clients_of_tgi_work_unchanged(server: Server) -> None:
    parameters = STORY["parameters"]
    whole = server.generate()
    hub = InferenceClient(server.url)
    streamed = list(hub.text_generation(STORY["inputs"], stream=True, details=True, **parameters))
    assert "".join(event.token.text for event in streamed) == whole["generated_text"]
    assert streamed[-1].generated_text == whole["generated_text"]
    assert streamed[-1].details is not None
    assert streamed[-1].details.finish_reason == "length"

    client = Client(server.url)
    answer = client.generate(STORY["inputs"], **parameters)
    assert answer.generated_text == whole["generated_text"]
    assert [token.id for token in answer.details.tokens] == [t["id"] for t in whole["details"]["tokens"]]
    told = list(client.generate_stream(STORY["inputs"], **parameters))
    assert told[-1].generated_text == whole["generated_text"]


# Says to a file, at a signal, how many objects Python leaves out when it looks for garbage, and how many not.
TELLS_OF_GARBAGE = """
import gc, os, pathlib, signal
def tell(*_):
    counts = f"{gc.get_freeze_count()} {len(gc.get_objects())}"
    told = pathlib.Path(__file__).with_name(str(os.getpid()))
    told.with_suffix(".half").write_text(counts)
    told.with_suffix(".half").rename(told)
signal.signal(signal.SIGUSR2, tell)
"""


def test_no_process_looks_for_garbage_in_what_it_started_with(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELLS_OF_GARBAGE)
    with running(PYTHONPATH=str(tmp_path)) as server:
        server.generate()
        for process in (server.front(), server.worker()):
            assert process is not None
            process.send_signal(signal.SIGUSR2)
            told = tmp_path / str(process.pid)
            assert eventually(told.exists)
            num_kept, num_others = map(int, told.read_text().split())
            assert num_kept > 50_000
            assert num_others < num_kept / 5


def test_it_says_what_it_serves(server: Server) -> None:
    info = server.http.get("/info").json()
    assert info["model_id"] == "verbatim-storyteller"
    assert info["model_type"] == "verbatim"
    assert info["max_total_tokens"] == 512
    assert len(info["fingerprint"]) == 64
    assert server.http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("flags", [(), ("--quantize", "int8")], ids=["stored", "int8"])
def test_the_worker_takes_the_memory_that_was_planned(flags: tuple[str, ...]) -> None:
    """Within 5 %: when it is ready, and after as many sequences as may run, in steps as long as may be."""
    with running(*flags) as fresh:
        [worker] = children_of(fresh)
        process = psutil.Process(int(worker))
        planned = fresh.http.get("/info").json()["memory"]["total_bytes"]
        assert process.memory_info().rss == pytest.approx(planned, rel=0.05)
        body: dict[str, Any] = {"inputs": [1] * 250, "parameters": {"max_new_tokens": 8, "temperature": 1.0}}
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda seed: fresh.generate(body, seed=seed, top_n_tokens=20), range(32)))
        assert process.memory_info().rss == pytest.approx(planned, rel=0.05)


def test_what_quantizing_frees_is_not_held(tmp_path: Path) -> None:
    """The weights as they were stored lay between those that stay: often it was 1.23 times the plan.

    Nor is it held for a while: no moment of loading takes more than the plan.
    """
    write("125m", tmp_path)
    with running(str(tmp_path), "--quantize", "int4", "--kv-cache-tokens", "4096") as quantized:
        [worker] = children_of(quantized)
        planned = quantized.http.get("/info").json()["memory"]["total_bytes"]
        assert psutil.Process(int(worker)).memory_info().rss == pytest.approx(planned, rel=0.05)
        assert peak_bytes(worker) == pytest.approx(planned, rel=0.05)


def test_the_plan_of_the_command_is_the_server_s(server: Server) -> None:
    told = subprocess.run(command("plan", "--json"), capture_output=True, text=True, check=True)
    planned, served = json.loads(told.stdout), server.http.get("/info").json()
    for measured in ("base_bytes", "total_bytes"):
        plan, fact = planned["memory"].pop(measured), served["memory"].pop(measured)
        assert plan == pytest.approx(fact, rel=0.05), measured
    assert planned["memory"].pop("free_bytes") > 0
    del served["memory"]["free_bytes"], planned["num_parameters"]
    assert planned == {name: served[name] for name in planned}


def test_a_folder_is_described(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny")
    (tmp_path / "tiny" / "modeling_tiny.py").write_text("raise SystemExit('run')")
    arguments = ("inspect", str(tmp_path / "tiny"))
    shown = subprocess.run(command(*arguments), capture_output=True, text=True, check=True).stdout
    for text in ("tiny", "verbatim", "one file", "0, 2", "feed_forward", "layer_norm", "code of its own"):
        assert text in shown
    told = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True, check=True).stdout
    report = json.loads(told)
    assert sum(report["parts"].values()) == report["num_parameters"]
    assert report["decoder"]["hidden_size"] == 32


def test_a_plan_is_shown_as_tables(tmp_path: Path) -> None:
    write_folder(tmp_path)
    shown = subprocess.run(command("plan", str(tmp_path)), capture_output=True, text=True, check=True).stdout
    for text in ("weights", "KV cache", "a step's buffers", "sum", "32 sequences", "128"):
        assert text in shown


def test_metrics_tell_of_the_work(server: Server) -> None:
    before = server.metric("vllm:generation_tokens_total")
    server.generate(max_new_tokens=10)
    assert server.metric("vllm:generation_tokens_total") == before + 10
    assert server.metric("vllm:time_to_first_token_seconds_count") > 0
    assert server.metric("vllm:inter_token_latency_seconds_count") > 0


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back() -> None:
    with running("--max-num-seqs", "1", "--max-waiting", "1") as server:
        body = {"inputs": "The", "parameters": {"max_new_tokens": 400, "ignore_eos": True}}
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(server.http.post, "/generate", json=body) for _ in range(2)]
            assert eventually(lambda: server.metric("vllm:num_requests_waiting") == 1)
            refused = server.http.post("/generate", json=body)
            assert refused.status_code == 429
            assert refused.json()["error_type"] == "overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            assert [future.result().status_code for future in busy] == [200, 200]


def test_when_the_worker_dies_the_stream_goes_on_and_nobody_notices() -> None:
    body: dict[str, Any] = {
        "inputs": "The",
        "parameters": {"max_new_tokens": 250, "ignore_eos": True, "temperature": 0.9, "seed": 4},
    }
    with running() as server:
        expected = tell(server, body)
        with server.http.stream("POST", "/generate", json=body | {"stream": True}) as response:
            chunks = response.iter_raw()
            content = next(chunks)
            subprocess.run(["kill", "-9", *children_of(server)], check=True)
            content += b"".join(chunks)
        events = parse_events(content)
        assert [event["token"] for event in events] == [event["token"] for event in expected]
        assert events[-1]["generated_text"] == expected[-1]["generated_text"]
        assert events[-1]["details"]["timings"]["decode_ms"] > 500, "another worker's start is a part of it"
        assert server.http.get("/health/ready").status_code == 200
        assert server.metric("verbatim_engine_restarts_total") == 1
        log = [line["message"] for line in server.lines()]
        assert "the engine worker was killed by SIGKILL (1 in a row); streams under way: 1" in log


def test_a_text_that_repeats_takes_fewer_steps_with_guesses_and_stays_the_same(server: Server) -> None:
    body: dict[str, Any] = {
        "inputs": "Once upon a time there was a little girl called Lily. She had a red ball. " * 6,
        "parameters": {"max_new_tokens": 60, "ignore_eos": True},
    }
    expected = tell(server, body)
    with running("--speculative-tokens", "8") as guessing:
        num_steps = guessing.metric("verbatim_engine_steps_total")
        events = tell(guessing, body)
        assert [event["token"] for event in events] == [event["token"] for event in expected]
        assert guessing.metric("verbatim_engine_steps_total") - num_steps < 40
        num_accepted = guessing.metric("vllm:spec_decode_num_accepted_tokens_total")
        assert 20 < num_accepted <= guessing.metric("vllm:spec_decode_num_draft_tokens_total")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_and_leaves_no_process(number: int) -> None:
    with running() as server:
        children = children_of(server)
        assert len(children) == 1
        server.stop(number)
        assert eventually(lambda: not Path("/proc", children[0]).exists())


def test_when_the_front_is_killed_its_worker_goes_too() -> None:
    with running() as server:
        [worker] = children_of(server)
        server.stop(signal.SIGKILL)
        assert eventually(lambda: not Path("/proc", worker).exists())


LONG = {"inputs": "The", "parameters": {"max_new_tokens": 450, "ignore_eos": True}, "stream": True}


def test_at_sigterm_streams_end_whole_while_new_requests_are_refused() -> None:
    with running() as server:
        with server.http.stream("POST", "/generate", json=LONG) as response:
            chunks = response.iter_bytes()
            content = next(chunks)
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: server.http.get("/health/ready").status_code == 503)
            refused = server.http.post("/generate", json=STORY)
            assert refused.status_code == 503
            assert refused.json()["error"] == "the server cannot take requests: draining"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
            assert server.http.get("/health/live").status_code == 200
            content += b"".join(chunks)
        events = parse_events(content)
        assert [event["index"] for event in events] == list(range(1, 451))
        assert events[-1]["details"]["finish_reason"] == "length"
        server.process.wait(20)


def test_past_the_grace_a_stream_ends_with_an_error_event_and_no_cut() -> None:
    with running("--grace-s", "0.3") as server:
        with server.http.stream("POST", "/generate", json=LONG) as response:
            chunks = response.iter_bytes()
            content = next(chunks)
            server.process.send_signal(signal.SIGTERM)
            content += b"".join(chunks)
        *events, last = parse_events(content)
        assert last["error"] == "the server stops: the answer took longer than its 0.3 s"
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        server.process.wait(20)
        assert not [line for line in server.lines() if "traceback" in line]


def slow_reader(server: Server, body: dict[str, Any]) -> socket.socket:
    """A client that asks, and takes next to nothing by itself: the kernel keeps little for it."""
    url = httpx.URL(server.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((url.host, url.port))
    client.sendall(request("POST", "/generate", json.dumps(body).encode()))
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    return client


def test_at_sigterm_an_answer_that_is_whole_still_reaches_its_slow_reader() -> None:
    with running() as server, slow_reader(server, LONG) as client:
        assert eventually(lambda: server.metric("vllm:num_requests_running") == 0)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(4)
        client.settimeout(20)
        content = b"".join(iter(partial(client.recv, 65536), b""))
        server.process.wait(20)
    last = content[content.rindex(b"data: ") : content.rindex(b"}") + 1]
    assert json.loads(last.removeprefix(b"data: "))["details"]["generated_tokens"] == 450
    assert len(content) > 40_000, "the kernel may hold it all"


def test_the_second_signal_stops_at_once() -> None:
    parameters = {"max_new_tokens": 450, "ignore_eos": True, "top_n_tokens": 20}
    with running() as server, slow_reader(server, LONG | {"parameters": parameters}):
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: server.http.get("/health/ready").status_code == 503)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(3)  # it waits for the reader, who takes nothing
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(5)


@pytest.mark.parametrize(
    "name",
    [
        "config: a link out of the folder",
        "weights: an LFS pointer",
        "weights: NaN",
        "shards: index pointing up",
    ],
)
def test_a_folder_that_cannot_be_served_ends_in_one_line(tmp_path: Path, name: str) -> None:
    """A few of the many that the loader refuses, by the command."""
    spoil, message = BROKEN[name]
    write_folder(tmp_path / "tiny")
    spoil(tmp_path / "tiny")
    ended = subprocess.run(
        command("serve", "--port", "0", str(tmp_path / "tiny")), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert re.match(f"verbatim: {message}", ended.stderr.strip().splitlines()[-1])
    assert "Traceback" not in ended.stderr
    assert "ready" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        (
            "chat_template.jinja",
            "hi\n{% if %}",
            "line 2: Expected an expression, got 'end of statement block'",
        ),
        (
            "chat_template.jinja",
            "{{ 10 ** (10 ** 8) }}",
            "the chat template takes more than 2 s of processor",
        ),
        ("generation_config.json", '{"num_beams": 4}', "num_beams is 4, which is not supported"),
        ("tokenizer_config.json", "[]", "it must hold an object, not a list"),
        ("tokenizer.json", "{}", ""),
    ],
)
def test_a_folder_whose_text_cannot_be_served_ends_in_one_line(
    name: str, content: str, cause: str, tmp_path: Path
) -> None:
    write_folder(tmp_path)
    (tmp_path / name).write_text(content)
    ended = subprocess.run(
        command("serve", "--port", "0", str(tmp_path)), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"verbatim: cannot load {tmp_path / name}: {cause}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "no/such/folder"], "no/such/folder: there is no such folder"),
        (
            ["serve", "--max-num-seqs", "0"],
            "setting max_num_seqs: Input should be greater than or equal to 1",
        ),
        (["serve", "--config", "no.toml"], "settings file no.toml: No such file or directory"),
        (["serve", "--max-batch-tokens", "8"], "max_batch_tokens is 8, it must be at least max_num_seqs, 32"),
        (["serve", "--grace-s", "inf"], "setting grace_s: Input should be a finite number"),
        (["serve", "--api-keys", ","], "setting api_keys: an empty key would let everybody in"),
        (["plan", "no/such/folder"], "no/such/folder: there is no such folder"),
        (["inspect", "."], "verbatim: config.json: there is no such file"),
        (["plan", "--kv-cache-tokens", "1000000000000"], "kv_cache_tokens is 1000000000000, which takes"),
        (["generate", "\udcff"], "the prompt is not valid UTF-8"),
        (["generate", "Once", "--temperature", "101"], "parameters.temperature is 101.0: it must be"),
        (["generate", "Once", "--temperature", "nan"], "NaN, which is not a JSON number"),
        (["generate", ""], "inputs is empty"),
    ],
)
def test_a_wrong_command_ends_in_one_line(arguments: list[str], message: str) -> None:
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_reader_that_has_enough_ends_generation_without_a_word() -> None:
    arguments = command("generate", "Once upon a time", "--max-new-tokens", "200")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10) == b"Once upon "
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(20)


def test_what_a_library_says_of_a_folder_is_one_line_too() -> None:
    """What `LoadError` does not foresee."""
    reason = refusal(RuntimeError("no such kernel\n  at frame #1\n" * 100)).reason
    assert reason.startswith("the model cannot be loaded: RuntimeError: no such kernel at frame #1 no such")
    assert len(reason) < 400


def test_offline_generation_says_what_the_server_says(server: Server) -> None:
    arguments = ["generate", STORY["inputs"], "--max-new-tokens", "60", "--temperature", "0.8", "--seed", "7"]
    offline = subprocess.run(command(*arguments), capture_output=True, text=True, check=True)
    assert offline.stdout == f"{STORY['inputs']}{server.generate()['generated_text']}\n"


def test_settings_come_from_flag_environment_and_file(tmp_path: Path) -> None:
    """In that order: the file says three, the environment two of them, the flag one. A fourth is none."""
    path = tmp_path / "settings.toml"
    path.write_text("max_num_seqs = 3\nmax_waiting = 3\nkv_cache_tokens = 3200\n")
    environment = {"VERBATIM_CONFIG": str(path), "VERBATIM_MAX_WAITING": "2", "VERBATIM_MAX_WAITNG": "1"}
    with running("--max-num-seqs", "1", **environment) as server:
        info = server.http.get("/info").json()
        assert info["max_concurrent_requests"] == 1 + 2
        assert server.metric("verbatim_kv_cache_blocks") == 200
        [line] = [line for line in server.lines() if line["level"] == "warning"]
        assert "VERBATIM_MAX_WAITNG is no setting; the nearest is VERBATIM_MAX_WAITING" in line["message"]


def test_the_log_holds_nothing_of_a_request(server: Server) -> None:
    secret = "xyzzy-plugh-4711"
    server.http.post(
        "/generate", json={"inputs": secret, "parameters": {"max_new_tokens": 2, "stop": [secret]}}
    )
    server.http.post(f"/{secret}", json={secret: secret}, headers={secret: secret, "user-agent": secret})
    assert secret not in json.dumps(server.lines())
    assert secret not in server.http.get("/metrics").text


def test_the_command_says_its_version_and_what_it_can_do() -> None:
    told = subprocess.run(command("--version"), capture_output=True, text=True, check=True).stdout
    assert told == f"verbatim {version('verbatim-server')}\n"
    told = subprocess.run(command("--help"), capture_output=True, text=True, check=True).stdout
    assert "serve" in told
    assert "generate" in told


def test_a_busy_port_is_said_in_the_log() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(command("serve", "--port", port), capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr


def test_any_model_folder_can_be_served_and_while_it_loads_a_request_is_a_503(tmp_path: Path) -> None:
    """Seen by asking as soon as the port answers: by then the worker still imports torch."""
    write_folder(tmp_path / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = command("serve", "--port", str(port), str(tmp_path / "tiny"))
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        statuses: list[int] = []

        def is_ready() -> bool:
            try:
                statuses.append(httpx.post(f"http://127.0.0.1:{port}/generate", json=STORY).status_code)
            except httpx.ConnectError:
                return False
            return statuses[-1] == 200

        assert eventually(is_ready, within_s=40)
        assert set(statuses) == {503, 200}
        address = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{address}/info").json()["model_id"] == "tiny"
        wish = {"inputs": STORY["inputs"], "parameters": {"max_new_tokens": 5, "details": True}}
        assert len(httpx.post(f"{address}/generate", json=wish).json()["details"]["tokens"]) == 5
    finally:
        process.kill()
        process.wait()
