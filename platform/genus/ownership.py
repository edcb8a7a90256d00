"""Whose a run folder is: a mark that keeps two launches from writing to one run.

A launch that takes a run folder over writes ``owner.json``, with a token of its own. Whoever finds
another's token there is a stale writer: a process on a node that was cut off, say, whose job SLURM
has started again elsewhere. It ends, and writes nothing more. The mark is looked at before a
checkpoint is published or pruned, before a marker (done, requeue) and before each row of a journal.

A look and the write after it are two acts. That is sound for checkpoints because the write is one
rename of a folder that bears the token: the new owner first writes its mark, then renames away all
such folders of others, and only then looks which checkpoint is the newest. A rename that was under
way either came before, and its checkpoint is a whole one of this run that the new owner sees, or
finds its folder gone and fails. Of a journal at most one row can slip through.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genus.atomic import replacing
from genus.errors import ConfigError, GenusError
from genus.tracking import Journal

MARK = "owner.json"
PATIENCE_SECONDS = 20.0
"""How long a launch waits for an earlier one on this machine that is just ending."""
_IN_THE_QUEUE = ("RUNNING", "SUSPENDED", "COMPLETING", "STOPPED")


class NotOwnerError(GenusError):
    """This process no longer owns its run folder: another launch has taken it over."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a mark says of the launch that wrote it."""

    token: str
    host: str
    pid: int
    born: int
    """Start of the process in clock ticks since the machine's: tells a pid used again."""
    boot: str
    """The machine's boot id."""
    since: str
    job: str = ""
    """SLURM's job id, empty outside of SLURM."""
    restart: int = 0
    """How often SLURM had started the job before."""

    def describe(self) -> str:
        """For messages: SLURM job 12 on n1, since ..."""
        who = f"SLURM job {self.job}" if self.job else f"process {self.pid}"
        return f"{who} on {self.host}, since {self.since}"


def holder_of(folder: Path) -> Holder | None:
    """What the mark of a run folder says; None where there is none."""
    for _ in range(3):  # NFS may answer ESTALE for a file that was replaced a moment ago
        try:
            return Holder(**json.loads((folder / MARK).read_text()))
        except FileNotFoundError:
            return None
        except OSError:
            continue
        except (ValueError, TypeError):
            return None
    return None


def is_at_work(holder: Holder) -> bool:
    """Whether the holder is known to be at work: its job runs, or its process on this machine."""
    return job_state(holder.job) in _IN_THE_QUEUE if holder.job else _lives_here(holder)


def _lives_here(holder: Holder) -> bool:
    here = holder.host == socket.gethostname() and holder.boot == _boot_id()
    return here and holder.born > 0 and _born(holder.pid) == holder.born


def job_state(job: str) -> str:
    """The state of a SLURM job; empty where it has left the queue or there is no SLURM here."""
    words = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Owner:
    """This launch's ownership of a run folder."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.token = folder, token

    def check(self) -> None:
        """NotOwnerError where another launch has taken the folder over."""
        holder = holder_of(self.folder)
        if holder is not None and holder.token != self.token:
            raise NotOwnerError(
                f"{self.folder} now belongs to {holder.describe()}: this launch is a stale one and "
                "ends here, having written nothing since"
            )


def take(folder: Path) -> str:
    """Write this launch's mark; returns its token. One process of a launch calls it.

    Raises ConfigError where the present holder is at work.
    """
    me = _this_launch()
    end = time.monotonic() + PATIENCE_SECONDS
    while (holder := holder_of(folder)) is not None and _bars(holder, me):
        if time.monotonic() > end:
            raise ConfigError(in_use(folder, holder))
        time.sleep(0.5)
    with replacing(folder / MARK) as temporary:
        temporary.write_text(json.dumps(asdict(me), indent=1) + "\n")
    return me.token


def _bars(holder: Holder, me: Holder) -> bool:
    """Whether ``me`` must not take over from ``holder``."""
    if (holder.pid, holder.born, holder.boot) == (me.pid, me.born, me.boot):
        return False  # this very process, which trains a second time
    if holder.job and holder.job == me.job and holder.restart != me.restart:
        return holder.restart > me.restart  # then this is what SLURM has started again elsewhere
    if holder.job and holder.job == me.job:
        return _lives_here(holder)
    return is_at_work(holder)


def obstacle(folder: Path) -> str | None:
    """Why this launch must not take a folder over, or None."""
    holder = holder_of(folder)
    if holder is not None and _bars(holder, _this_launch()):
        return in_use(folder, holder)
    return None


def in_use(folder: Path, holder: Holder) -> str:
    """The message for a launch that must not take a folder over."""
    way_out = f"scancel {holder.job}" if holder.job else f"kill {holder.pid}"
    return (
        f"{folder} is in use by {holder.describe()}: wait for its end, end it ({way_out}), or take "
        "another run.name"
    )


class OwnedJournal(Journal):
    """A journal that only its run's owner adds to."""

    def __init__(self, path: Path, owner: Owner) -> None:
        super().__init__(path)
        self._owner = owner

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; NotOwnerError where the folder is another launch's by now."""
        self._owner.check()
        super().write(row)


def _this_launch() -> Holder:
    job, restart = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    host, pid = socket.gethostname(), os.getpid()
    who = f"{job}.{restart}" if job else f"{host}.{pid}"
    return Holder(
        token=f"{who}-{secrets.token_hex(6)}",  # the batch script looks for its own job.restart-
        host=host,
        pid=pid,
        born=_born(pid),
        boot=_boot_id(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        job=job,
        restart=int(restart),
    )


def _born(pid: int) -> int:
    """Start time of a process in clock ticks; 0 where it is gone (or a zombie)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
