"""What an operator sees on the terminal: a bar while weights load, a panel when the model is ready, an error.

Decides nothing; says it on standard error, so that standard output holds answers alone: a story, a plan.
"""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from model.interface import FolderReport, ModelInfo


def say_error(message: str) -> None:
    """One red line."""
    Console(stderr=True, soft_wrap=True).print(f"verbatim: {message}", style="bold red", markup=False)


def announce(info: ModelInfo, address: str, took_s: float, *, as_text: bool) -> None:
    """Say what is served and where: a panel for a reader, a line of JSON for a machine."""
    memory = info.memory
    facts = {
        "model": f"{info.model_id} ({info.model_type})",
        "parameters": f"{info.num_parameters / 1e6:,.1f} M, {_format(info)}, {_mb(memory.weight_bytes)}",
        "runs on": f"{info.device}, kernels: {info.kernels}",
        "KV cache": f"{memory.kv_cache_tokens:,} tokens, {_mb(memory.kv_cache_bytes)}",
        "memory": f"{_mb(memory.total_bytes)}: these, {_mb(memory.step_bytes)} for a step, "
        f"{_mb(memory.base_bytes)} of libraries",
        "context": f"{info.max_total_tokens:,} tokens",
        "fingerprint": info.fingerprint[:16],
        "address": address,
        "ready in": f"{took_s:.1f} s",
    }
    if not as_text:
        fields = {name.replace(" ", "_").lower(): fact for name, fact in facts.items()}
        logging.getLogger("verbatim").info("ready", extra=fields)
        return
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(f"[dim]{name}[/]", fact)
    Console(stderr=True).print(Panel(table, title="[bold]Verbatim[/]", title_align="left", expand=False))


def show_plan(info: ModelInfo, max_batch_tokens: int, max_num_seqs: int) -> None:
    """Say, on standard output, what a model takes and how much it holds."""
    memory = info.memory
    title = f"{info.model_id} ({info.model_type}), {_format(info)}, {info.device}"
    table = Table("memory", title=title, title_justify="left")
    table.add_column("MB", justify="right")
    table.add_column("why")
    for name, num_bytes, why in (
        ("interpreter, libraries", memory.base_bytes, "measured now"),
        ("weights", memory.weight_bytes, f"{info.num_parameters:,} parameters, tables of positions"),
        (
            "KV cache",
            memory.kv_cache_bytes,
            f"{memory.kv_cache_tokens:,} tokens of {memory.kv_bytes_per_token:,} bytes",
        ),
        ("a step's buffers", memory.step_bytes, f"{max_batch_tokens} tokens, {max_num_seqs} sequences"),
        ("sum", memory.total_bytes, f"{_mb(memory.free_bytes)} are free, beside the first line"),
    ):
        table.add_row(name, f"{num_bytes / 1e6:,.1f}", why)
    sequences = Table("tokens of a sequence")
    sequences.add_column("so many fit at once", justify="right")
    for length, num_sequences in memory.num_sequences:
        sequences.add_row(f"{length:,}", f"{num_sequences:,}")
    console = Console()
    console.print(table)
    console.print(sequences)


def show_evaluations(title: str, rows: list[tuple[str, int, float, float]], of_what: str) -> None:
    """Say, on standard output, what each came to: format, bytes of weights, bits per byte, nats per token."""
    table = Table("weights", title=title, title_justify="left", caption=of_what, caption_justify="left")
    for heading in ("MB", "bits per byte", "more than the first", "nats per token"):
        table.add_column(heading, justify="right")
    for name, num_bytes, bits, nats in rows:
        more = f"{bits - rows[0][2]:+.4f}"
        table.add_row(name, f"{num_bytes / 1e6:,.1f}", f"{bits:.4f}", more, f"{nats:.4f}")
    Console().print(table)


def show_bench(what: str, works: list[dict[str, Any]], server: dict[str, float], limit: str) -> None:
    """Say, on standard output, what was measured: `Figures` of each work by name, and the server's own."""
    steps = Table("in process", caption=limit, caption_justify="left")
    streams = Table("over SSE")
    for table, headings in (
        (steps, ("a step, ms", "tokens/s", "limit", "of the limit")),
        (streams, ("tokens/s", "in process", "ratio of time", "first, ms", "in process")),
    ):
        for heading in headings:
            table.add_column(heading, justify="right")
    for work in works:
        steps.add_row(
            work["work"],
            f"{work['step_ms']:,.1f}",
            f"{work['step_tokens_per_s']:,.1f}",
            f"{work['limit_tokens_per_s']:,.1f}",
            f"{work['of_limit']:.0%}",
        )
        streams.add_row(
            work["work"],
            f"{work['socket_tokens_per_s']:,.1f}",
            f"{work['process_tokens_per_s']:,.1f}",
            f"{work['ratio']:.3f}",
            f"{work['socket_first_token_ms']:,.1f}",
            f"{work['process_first_token_ms']:,.1f}",
        )
    others = Table(show_header=False)
    others.add_column()
    others.add_column(justify="right")
    for name, value in server.items():
        others.add_row(name, f"{value:,.2f}")
    console = Console()
    console.print(what, soft_wrap=True, highlight=False, markup=False)
    for table in (steps, streams, others):
        console.print(table)


def show_report(name: str, report: FolderReport) -> None:
    """Say, on standard output, what a folder holds."""
    stored = ", ".join(f"{count} of {dtype}" for dtype, count in report.stored_dtypes.items())
    files = "one file" if report.num_files == 1 else f"{report.num_files} files"
    facts = {
        "family": report.model_type,
        "weights": f"{_mb(report.num_bytes)} in {files}; tensors: {stored}",
        "served in": report.dtype,
        "context": f"{report.decoder['max_positions']:,} tokens",
        "end tokens": ", ".join(map(str, report.end_token_ids)) or "none",
        "chat template": "yes" if report.has_chat_template else "no",
        "unusual": "\n".join(report.unusual) or "nothing",
    }
    table = Table(show_header=False, title=name, title_justify="left")
    for fact, what in facts.items():
        table.add_row(fact, Text(what))
    parts = Table("part")
    parts.add_column("parameters", justify="right")
    for part, num_parameters in {**report.parts, "sum": report.num_parameters}.items():
        parts.add_row(part, f"{num_parameters:,}")
    decoder = Table("decoder", "")
    for field, value in report.decoder.items():
        decoder.add_row(field, str(value))
    console = Console()
    for part_of_it in (table, parts, decoder):
        console.print(part_of_it)


def _format(info: ModelInfo) -> str:
    return info.dtype if info.quantization is None else f"{info.dtype} and {info.quantization}"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


class LoadingBar:
    """A bar while weights load, if there is a terminal to show it on."""

    def __init__(self, *, as_text: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("weights", total=None)
        self._is_shown = as_text and console.is_terminal

    def show(self, done: int, total: int) -> None:
        """So many bytes of so many."""
        if self._is_shown:
            self._progress.start()
            self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._is_shown:  # rich ends even a bar that never was with an empty line
            self._progress.stop()
