"""Every Prometheus series, declared once, on a registry of its own.

Names are vLLM's and TGI's where one exists. A label's values are a closed set: no path, key, id or text of
a request ever becomes one. Decides nothing; the engine's gauges are read when they are scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from server.engine.request import EngineStats
from server.errors import ERRORS

OTHER_ROUTE = "other"
FINISH_REASONS = ("length", "eos_token", "stop_sequence", "deadline")
DropReason = Literal["slow_reader", "timed_out", "too_many_connections", "broken_request"]

# A small model on a good machine answers in under a millisecond; a large one, queued, in a minute.
_LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5,
    0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_TOKEN_BUCKETS = tuple(2**i for i in range(18))


class Metrics:
    """The series of one server."""

    def __init__(self, read_engine: Callable[[], EngineStats]) -> None:
        # A time beside each series would be half of the page, and nobody reads it.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library forgot to annotate it
        registry = self._registry = CollectorRegistry()
        self._num_requests = 0
        self._num_successes = 0

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _LATENCY_BUCKETS_S) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        self._http = counter("verbatim_http_requests", "Answers by route and status.", ("route", "status"))
        self._errors = counter("verbatim_errors", "Requests not served, by kind.", ("error_type",))
        self._departed = counter("verbatim_departed_clients", "Clients that left before their answer ended.")
        self._connections = Gauge("verbatim_open_connections", "Sockets of clients.", registry=registry)
        self._dropped = counter("verbatim_dropped_connections", "Connections cut off, by cause.", ("reason",))
        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of accepted requests.")
        self._cached_tokens = counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._generated_tokens = counter("vllm:generation_tokens", "Generated tokens.")
        self._finished = counter("vllm:request_success", "Finished answers by reason.", ("finished_reason",))
        self._first_token = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.")
        self._token_gap = histogram("vllm:inter_token_latency_seconds", "From one token to the next.")
        self._whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.")
        self._queue = histogram("vllm:request_queue_time_seconds", "Time that a request waited to run.")
        self._input_length = histogram("tgi_request_input_length", "Prompt tokens.", _TOKEN_BUCKETS)
        self._output_length = histogram("tgi_request_generated_tokens", "Generated tokens.", _TOKEN_BUCKETS)

        for error in ERRORS:  # a series that appears only at the first fault cannot be alerted on
            self._errors.labels(error.error_type)
        for reason in FINISH_REASONS:
            self._finished.labels(reason)
        for cause in get_args(DropReason):
            self._dropped.labels(cause)
        registry.register(_ScrapeCollector(read_engine, lambda: (self._num_requests, self._num_successes)))

    def render(self) -> bytes:
        """Return every series in Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, route: str, status: int) -> None:
        """Count one answer; `route` is the template of a known route, or `OTHER_ROUTE`."""
        self._http.labels(route, str(status)).inc()

    def failed(self, error_type: str) -> None:
        """Count one request not served."""
        self._errors.labels(error_type).inc()

    def connected(self, change: int) -> None:
        """Count a connection that opened (1) or ended (-1)."""
        self._connections.inc(change)

    def dropped(self, reason: DropReason) -> None:
        """Count one connection that was cut off."""
        self._dropped.labels(reason).inc()

    def departed(self) -> None:
        """Count one client that left before its answer ended."""
        self._departed.inc()

    def accepted(self, num_prompt_tokens: int) -> None:
        """Count one request that the engine took."""
        self._num_requests += 1
        self._prompt_tokens.inc(num_prompt_tokens)
        self._input_length.observe(num_prompt_tokens)

    def first_tokens(self, num_tokens: int, since_arrival_s: float) -> None:
        """Observe the first tokens of an answer."""
        self._generated_tokens.inc(num_tokens)
        self._first_token.observe(since_arrival_s)

    def next_tokens(self, num_tokens: int, since_last_s: float) -> None:
        """Observe tokens that came together: each is counted with an equal share of the gap."""
        self._generated_tokens.inc(num_tokens)
        for _ in range(num_tokens):
            self._token_gap.observe(since_last_s / num_tokens)

    def finished(self, reason: str, num_tokens: int, whole_s: float) -> None:
        """Count one whole answer; `reason` is one of `FINISH_REASONS`."""
        self._num_successes += 1
        self._finished.labels(reason).inc()
        self._output_length.observe(num_tokens)
        self._whole.observe(whole_s)

    def queued(self, queue_s: float, num_cached_tokens: int) -> None:
        """Observe what the engine says of an answer's start."""
        self._queue.observe(queue_s)
        self._cached_tokens.inc(num_cached_tokens)


class _ScrapeCollector(Collector):
    """What is read at each scrape: the engine's state, and TGI's counters, whose names have no `_total`."""

    def __init__(
        self, read_engine: Callable[[], EngineStats], read_counts: Callable[[], tuple[int, int]]
    ) -> None:
        self._read_engine = read_engine
        self._read_counts = read_counts

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        stats = self._read_engine()
        num_requests, num_successes = self._read_counts()
        num_used = stats.num_blocks - stats.num_free_blocks

        running, waiting = stats.num_running, stats.num_waiting
        yield GaugeMetricFamily("vllm:num_requests_running", "Sequences in the batch.", running)
        yield GaugeMetricFamily("tgi_batch_current_size", "Sequences in the batch.", running)
        yield GaugeMetricFamily(
            "vllm:num_requests_waiting", "Sequences that wait, for a place or for their readers.", waiting
        )
        yield GaugeMetricFamily("tgi_queue_size", "Sequences that wait.", waiting)
        yield GaugeMetricFamily(
            "vllm:kv_cache_usage_perc",
            "Used part of the KV cache, 0 to 1.",
            num_used / max(1, stats.num_blocks),
        )
        yield GaugeMetricFamily("verbatim_kv_cache_blocks", "Blocks of the KV cache.", stats.num_blocks)
        yield GaugeMetricFamily(
            "verbatim_prefix_cache_blocks", "Unused blocks that may be found again.", stats.num_cached_blocks
        )
        yield CounterMetricFamily("verbatim_engine_restarts", "Workers replaced.", stats.num_restarts)
        yield CounterMetricFamily("vllm:num_preemptions", "Sequences preempted.", stats.num_preemptions)
        yield CounterMetricFamily(
            "vllm:spec_decode_num_draft_tokens", "Tokens guessed.", stats.num_draft_tokens
        )
        yield CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens", "Guesses that were right.", stats.num_accepted_tokens
        )
        yield CounterMetricFamily("verbatim_engine_steps", "Steps of the engine.", stats.num_steps)
        yield CounterMetricFamily("verbatim_engine_step_tokens", "Tokens computed.", stats.num_step_tokens)
        yield UnknownMetricFamily("tgi_request_count", "Requests accepted.", num_requests)
        yield UnknownMetricFamily("tgi_request_success", "Requests answered whole.", num_successes)
