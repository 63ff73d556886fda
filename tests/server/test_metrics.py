"""The series by their names, and that nothing of a request becomes one."""

from __future__ import annotations

import pytest

from tests.server.live import Live

KNOWN_NAMES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "tgi_request_count",
    "tgi_request_success",
    "tgi_request_generated_tokens_bucket",
    "tgi_queue_size",
    "tgi_batch_current_size",
}


def test_the_names_that_dashboards_know_are_there(live: Live) -> None:
    names = {series.partition("{")[0] for series in live.series()}
    assert names >= KNOWN_NAMES


def test_tgi_counters_have_no_suffix_and_count(live: Live) -> None:
    before = live.series()
    live.generate(max_new_tokens=5)
    live.behaviour.fail_after = 2
    live.generate(max_new_tokens=5)
    after = live.series()
    assert after["tgi_request_count"] - before["tgi_request_count"] == 2
    assert after["tgi_request_success"] - before["tgi_request_success"] == 1
    assert "tgi_request_count_total" not in after


def test_a_failure_is_counted_once_with_a_stream_and_without(live: Live) -> None:
    series = 'verbatim_errors_total{error_type="generation"}'
    live.behaviour.fail_after = 2
    for path in ("/generate", "/generate_stream"):
        before = live.series()[series]
        live.generate("abc", path)
        assert live.series()[series] - before == 1


def test_each_token_is_counted_once(live: Live) -> None:
    before = live.series()
    live.stream("abcd", max_new_tokens=7)
    after = live.series()

    def grown(series: str) -> float:
        return after[series] - before[series]

    assert grown("vllm:prompt_tokens_total") == 4
    assert grown("vllm:generation_tokens_total") == 7
    assert grown("vllm:time_to_first_token_seconds_count") == 1
    assert grown("vllm:inter_token_latency_seconds_count") <= 6
    assert grown('vllm:request_success_total{finished_reason="length"}') == 1


def test_the_engine_is_read_at_the_scrape(live: Live) -> None:
    assert live.series()["vllm:kv_cache_usage_perc"] == 0.25


@pytest.mark.parametrize("what", ["path", "prompt", "field", "request id", "method"])
def test_nothing_of_a_request_becomes_a_series(what: str, live: Live) -> None:
    def send(text: str) -> None:
        match what:
            case "path":
                live.http.get(f"/{text}")
            case "prompt":
                live.generate(text)
            case "field":
                live.generate("a", **{text: 1})
            case "request id":
                live.http.get("/health", headers={"x-request-id": text, "authorization": f"Bearer {text}"})
            case _:
                live.http.request(text.upper(), "/generate")

    send("canary")
    live.series()  # itself a request
    before = live.series()
    send("sparrow")
    assert live.series().keys() == before.keys()
    assert not any("canary" in series.lower() or "sparrow" in series.lower() for series in before)
