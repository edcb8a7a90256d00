"""What a run tells: append-only JSON lines in its folder. Everything else is a mirror of them.

``metrics/rank-N.jsonl`` holds one row a report, ``events.jsonl`` what happened (start, resume,
checkpoint, evaluation, fault, finish). A run that was killed repeats the samples after its last
checkpoint, so its rows overlap; ``read_metrics`` drops the rows that a resume superseded.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BETWEEN_TEXTS = "\n\n---\n\n"
"""In files of several texts."""


class Journal:
    """Appends JSON lines to one file, each line whole: one write a line, in append mode.

    A row that can't be written (a full disk) is lost with a warning, and training goes on: what
    must not be lost is the checkpoint's affair.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        end_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self._failed = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, its time (seconds since the epoch) first."""
        text = json.dumps({"time": round(time.time(), 3), **_plain(row)}, default=_number_or_text)
        line = f"\n{text}\n" if self._failed else f"{text}\n"  # the failed write may have torn one
        try:
            if self._file.write(line.encode()) != len(line):
                raise OSError("the disk took a part of the line only")
        except OSError as error:
            if not self._failed:
                print(f"can't write to {self._file.name}: {error}", file=sys.stderr, flush=True)
            self._failed = True
        else:
            self._failed = False

    def close(self) -> None:
        """No more rows."""
        self._file.close()


def end_torn_line(path: Path) -> None:
    """End the line that a process killed in mid-write left torn, so that the next one is whole."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def parse_lines(text: bytes) -> list[dict[str, Any]]:
    """The whole rows of a journal's text; torn lines (a kill in mid-write) are passed over."""
    rows = []
    for line in text.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a journal; none where there is no such file."""
    return parse_lines(path.read_bytes()) if path.exists() else []


def read_metrics(run: Path, rank: int = 0) -> list[dict[str, Any]]:
    """The reports of one rank as if the run had never been interrupted, by ``samples``."""
    rows: list[dict[str, Any]] = []
    for row in read_lines(run / "metrics" / f"rank-{rank}.jsonl"):
        if "resumed_at" in row:
            rows = [r for r in rows if r["samples"] <= row["resumed_at"]]
        elif "samples" in row:  # other rows tell of single steps (skipped_ids)
            rows.append(row)
    return rows


def read_events(run: Path) -> list[dict[str, Any]]:
    """The run's events in the order in which they happened."""
    return read_lines(run / "events.jsonl")


def read_bad_samples(run: Path) -> list[dict[str, Any]]:
    """The ledger of bad samples and shards, each once: what several ranks met, or a run met again
    after a kill, counts as first met; a shard counts for all of its samples."""
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for path in sorted((run / "bad-samples").glob("rank-*.jsonl")):
        for row in read_lines(path):
            found.setdefault((row.get("shard"), row.get("sample")), row)
    whole = {shard for shard, sample in found if sample is None}
    rows = [row for (shard, sample), row in found.items() if sample is None or shard not in whole]
    return sorted(rows, key=lambda row: row["samples"])


def _plain(value: Any) -> Any:
    # JSON has no NaN or infinity; readers in other languages choke on Python's spelling of them.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _number_or_text(value: Any) -> Any:
    """NumPy's and torch's scalars as numbers, anything else by its name: no row ends a run."""
    try:
        return _plain(value.item())
    except (AttributeError, RuntimeError, ValueError):
        return str(value)
