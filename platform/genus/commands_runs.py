"""``genus runs``: run folders, how far they are, and what SLURM says of their jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genus.evaluate.kept import last_figures, short
from genus.ownership import holder_of, is_at_work
from genus.slurm import Queued, job_of, queue
from genus.tracking import read_events, read_metrics

_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD")


def list_runs(root: Path) -> None:
    """One line a run folder: state, progress, speed, last loss, newest figures, its job."""
    folders = sorted(path.parent for path in root.glob("*/config.json"))
    waiting = sorted(
        path
        for path in root.glob("*")
        if not (path / "config.json").exists() and (path / "slurm" / "1" / "config.json").exists()
    )
    if not folders and not waiting:
        print(f"no runs in {root}")
        return
    queued = queue()
    for folder in sorted([*folders, *waiting]):
        print(line_of(folder, queued))


def line_of(folder: Path, queued: Sequence[Queued]) -> str:
    """The line of one run folder."""
    rows = [row for row in read_metrics(folder) if "step" in row]
    row = rows[-1] if rows else {}
    done, total = row.get("samples", 0), _config(folder)["train"]["samples"]
    speed = row.get("samples_per_second")
    losses = [f"{key} {value:.4f}" for key, value in row.items() if key.endswith("/loss")]
    entry = queue_entry(folder, queued)
    words = [
        f"{folder.name:<28} {state_of(folder, entry):<9} {done:>13,}/{total:<13,}",
        f"{100 * done / total:>3.0f} %",
        f"{speed:>7,.0f}/s" if speed is not None else " " * 9,
        *losses,
        *short(last_figures(folder)),
        *([entry.describe()] if entry else []),
    ]
    return "  ".join(words).rstrip()


def state_of(folder: Path, entry: Queued | None = None) -> str:
    """finished, running, queued (waits for its first start), requeued (waits for another), stopped
    (early but cleanly), failed, or open (killed, or at work where this machine can't see it)."""
    begun = (folder / "config.json").exists()
    if entry is not None and entry.state.partition("+")[0] in _WAITING:
        return "requeued" if begun and (folder / "owner.json").exists() else "queued"
    if (folder / "done").exists():
        return "finished"
    holder = holder_of(folder)
    if holder is not None and is_at_work(holder):
        return "running"
    if (folder / "requeue").exists():
        return "stopped"
    events = [event["event"] for event in read_events(folder)[-2:]]
    ended_badly = events == ["fault", "closed"]
    lost = entry is not None and entry.state.partition("+")[0] in ("FAILED", "TIMEOUT", "CANCELLED")
    return "failed" if ended_badly or lost else "open"


def queue_entry(folder: Path, queued: Sequence[Queued]) -> Queued | None:
    """What the queue says of the newest job of a run folder; None where it has forgotten it."""
    told = sorted(
        (folder / "slurm").glob("[0-9]*/submitted.json"), key=lambda path: int(path.parent.name)
    )
    if not told or not queued:
        return None
    about = json.loads(told[-1].read_text())
    return job_of(queued, about["job"], about["task"])


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():  # submitted, and not yet begun
        path = folder / "slurm" / "1" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    return config
