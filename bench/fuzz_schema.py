"""R15: requests drawn from the OpenAPI document, right and wrong, against a whole server.

Each answer must have a documented status, below 500, and the documented shape. The requests are those of
tests/server/schema_cases.py. hypothesis shrinks the first that fails, and the command ends with it.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import hypothesis
import typer
from rich.console import Console
from rich.table import Table

from tests.server.schema_cases import Document, Request
from tests.whole import running

CountOption = Annotated[int, typer.Option(min=1, help="how many requests")]
SeedOption = Annotated[int, typer.Option(help="the same seed, the same requests")]


def main(count: CountOption = 2000, seed: SeedOption = 0) -> None:
    """Send them; print a table and a line of JSON."""
    seen: Counter[tuple[str, int]] = Counter()
    with running() as server:
        document = Document(server.http.get("/openapi.json").json())

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(document.requests())
        def holds(request: Request) -> None:
            response = server.http.send(request.build(server.http))
            document.check(request, response)
            seen[request.path, response.status_code] += 1

        holds()
        assert server.http.get("/health/ready").status_code == 200
    table = Table("path", "statuses")
    for path in sorted({path for path, _ in seen}):
        statuses = sorted((status, num) for (its_path, status), num in seen.items() if its_path == path)
        table.add_row(path, " ".join(f"{status}: {num}" for status, num in statuses))
    Console(width=110).print(table)
    totals: Counter[int] = Counter()
    for (_, status), num in seen.items():
        totals[status] += num
    figures = {"bench": "fuzz_schema", "seed": seed, "requests": totals.total(), "wrong": 0}
    print(json.dumps(figures | {"statuses": dict(sorted(totals.items()))}))


if __name__ == "__main__":
    typer.run(main)
