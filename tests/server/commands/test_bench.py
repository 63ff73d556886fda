"""`verbatim bench --quick` on the embedded model: the figures are there and can be true. No time counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.commands.measured import engine_flags, inside
from server.commands.shared import EMBEDDED_MODEL, worker_config
from server.settings import load_settings
from tests.whole import command


@pytest.mark.timeout(180)
def test_every_figure_is_there_and_can_be_true() -> None:
    ended = subprocess.run(
        command("bench", "--quick", "--num-threads", "1", "--kv-cache-tokens", "4096"),
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, line = ended.stdout.splitlines()
    for text in ("of the limit", "over SSE", "32 streams", "GB/s"):
        assert text in "\n".join(shown)
    told = json.loads(line)
    assert (told["model_id"], told["threads"], told["rounds"]) == ("verbatim-storyteller", 1, 1)
    assert [work["work"] for work in told["work"]] == [
        "prefill of 511",
        "1 stream",
        "8 streams",
        "32 streams",
    ]
    assert all(value > 0 for work in told["work"] for name, value in work.items() if name != "work")
    assert all(value > 0 for value in told["server"].values())
    for work in told["work"]:
        assert work["of_limit"] == pytest.approx(work["step_tokens_per_s"] / work["limit_tokens_per_s"])
    assert told["server"]["kv_cache_mb"] == pytest.approx(4096 * told["roof"]["kv_bytes_per_token"] / 1e6)
    assert told["server"]["worker_mb"] > told["server"]["weights_mb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-folder",), "there is no such folder"),
        (("--kv-cache-tokens", "64"), "the context is 64 tokens, 72 are needed"),
    ],
)
def test_what_cannot_be_measured_ends_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    ended = subprocess.run(
        command("bench", "--quick", *arguments), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_on_the_terminal_does_not_reach_the_process_that_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would say so with a traceback. This one answers with its session.
    program = tmp_path / "python"
    answer = 'print(json.dumps({"type": "refused", "reason": str(os.getsid(0))}))'
    program.write_text(f"#!{sys.executable}\nimport json, os\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    config = worker_config(load_settings(), EMBEDDED_MODEL)
    with pytest.raises(RuntimeError) as raised, inside(config):
        pass
    assert int(str(raised.value)) != os.getsid(0)


def test_the_server_is_told_every_setting_of_the_engine() -> None:
    """By its name and value, as a flag takes it."""
    settings = load_settings(quantize="int8", num_threads=3, watchdog_s=2.5)
    flags = engine_flags(settings)
    assert flags[flags.index("--quantize") + 1] == "int8"
    assert flags[flags.index("--num-threads") + 1] == "3"
    assert flags[flags.index("--watchdog-s") + 1] == "2.5"
    assert "--config" not in flags
