"""A plan beside what the run then measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genus.errors import ConfigError
from genus.plan.estimate import SCHEMA
from genus.tracking import read_metrics

FILE = "plan.json"


def read_plan(folder: Path) -> dict[str, Any]:
    """A run's plan. ConfigError where there is none."""
    try:
        body: dict[str, Any] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {FILE}: plan it first, with the run's own command line"
        ) from None
    except ValueError as error:
        raise ConfigError(f"can't read {folder / FILE}: {error}") from None
    if body.get("schema") != SCHEMA:
        raise ConfigError(f"{folder / FILE} is no plan of this version of genus")
    return body


def comparison(folder: Path) -> Iterator[str]:
    """Lines of what was predicted and what was measured."""
    body = read_plan(folder)
    rows = [row for row in read_metrics(folder) if "step_ms" in row]
    if not rows:
        raise ConfigError(f"{folder} has measured nothing yet (metrics/rank-0.jsonl)")
    steady = rows[1:] or rows  # the first row has what happens once
    step = statistics.median(row["step_ms"] for row in steady)
    yield f"{'':16}{'predicted':>12}{'measured':>12}{'ratio':>8}"
    if body["step_seconds"]:
        yield _row("ms a step", 1000 * body["step_seconds"], step)
        speed = statistics.median(row["samples_per_second"] for row in steady)
        yield _row("samples/s", body["samples_per_second"], speed)
    mib = body["peak_bytes"] / 2**20
    on_gpu = body["machine"] != "this CPU"
    if on_gpu:
        yield _row("peak MiB", mib, 1024 * max(row["memory_gib"] for row in rows))
        return
    grown = [row["memory_grown_gib"] for row in rows if "memory_grown_gib" in row]
    if grown:
        yield _row("peak MiB", mib, 1024 * max(grown))
        yield (
            "(measured: growth of resident memory, with the libraries that were loaded on the way "
            "and what the allocator keeps; benchmarks/plan.py counts tensors)"
        )


def _row(what: str, predicted: float, measured: float) -> str:
    return f"{what:16}{predicted:12.2f}{measured:12.2f}{predicted / measured:8.2f}"
