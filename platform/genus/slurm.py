"""Talking to SLURM: asking whether a job could run, submitting it, and looking at the queue."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job in the queue, or one that left it a moment ago."""

    job: str
    array: str
    """Job id of the array that it belongs to, and its tasks: '3', or '3-7' of those that wait."""
    tasks: str
    state: str
    reason: str
    nodes: str

    def describe(self) -> str:
        """RUNNING on n[1-2] (12), or PENDING: Resources (12)."""
        if self.nodes:
            return f"{self.state} on {self.nodes} ({self.job})"
        reason = "" if self.reason in ("", "None") else f": {self.reason}"
        return f"{self.state}{reason} ({self.job})"


def refuse_impossible(script: str) -> None:
    """ConfigError where the cluster could never start such a job, which sbatch would queue."""
    done = _call(["sbatch", "--test-only"], script)
    if done.returncode != 0:
        raise ConfigError(f"SLURM would not start this job: {_reason(done)}\n{_cluster()}")


def submit(script: Path) -> str:
    """Submit a batch script; returns the job id."""
    done = _call(["sbatch", "--parsable", str(script)])
    if done.returncode != 0:
        raise ConfigError(f"SLURM took no job: {_reason(done)}")
    return done.stdout.strip().partition(";")[0]  # id;cluster


def queue() -> list[Queued]:
    """The jobs that SLURM knows; none where there is no SLURM here or it does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "--all", "--states=all", "--json"], capture_output=True, timeout=30
        )
        jobs = json.loads(done.stdout)["jobs"] if done.returncode == 0 else []
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return []
    return [_queued(job) for job in jobs]


def job_of(queued: Sequence[Queued], job: str, task: int | None = None) -> Queued | None:
    """The entry of a job, or of one task of an array."""
    for entry in queued:
        if entry.job == job and (task is None or entry.array != job):
            return entry
        if task is not None and entry.array == job and _holds(entry.tasks, task):
            return entry
    return None


def _queued(job: dict[str, Any]) -> Queued:
    state = job.get("job_state") or ""
    words = state if isinstance(state, list) else [state]  # a list since SLURM 23.11
    array = _number(job.get("array_job_id"))
    task = _number(job.get("array_task_id"))
    return Queued(
        job=_number(job.get("job_id")),
        array=array if array != "0" else "",
        tasks=str(job.get("array_task_string") or "") or task,
        state="+".join(str(word) for word in words),
        reason=str(job.get("state_reason") or ""),
        nodes=str(job.get("nodes") or ""),
    )


def _number(value: Any) -> str:
    if isinstance(value, dict):  # {"set": true, "number": 12} since SLURM 23.02
        value = value.get("number") if value.get("set") else None
    return "" if value is None else str(value)


def _holds(tasks: str, task: int) -> bool:
    """Whether '3' or '0-2,5%4' names the task."""
    for part in re.sub(r"%.*", "", tasks).strip("[]").split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and int(first) <= task <= int(last or first):
            return True
    return False


def _call(words: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {words[0]} here: submit from a login node of the cluster, or look at the "
            "script with --dry-run"
        ) from None
    except subprocess.SubprocessError as error:
        raise ConfigError(f"{words[0]} does not answer: {error}") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [
        re.sub(r"^(sbatch: )?(error: )?(allocation failure: )?", "", line)
        for line in done.stderr.splitlines()
    ]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or f"code {done.returncode}"


def _cluster() -> str:
    """What the partitions have, for the message to one who asked for more."""
    form = "%P|%D|%c|%G|%l"
    done = _call(["sinfo", "--noheader", f"--format={form}"])
    lines = ["what there is:"]
    for row in done.stdout.splitlines():
        partition, nodes, cpus, gres, limit = (row.split("|") + [""] * 5)[:5]
        lines.append(f"  {partition:<12} {nodes} nodes, {cpus} CPUs, {gres} each, time {limit}")
    return "\n".join(lines)
