"""A run folder has one owner: a second launch is refused, a stale one ends without harm."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genus import ownership
from genus.checkpoint import Checkpoints
from genus.checkpoint_reader import fault_of, published
from genus.errors import ConfigError
from genus.ownership import MARK, NotOwnerError, OwnedJournal, Owner, holder_of, take
from genus.parallel import World
from genus.state import State


class Number:
    """A state object of one tensor."""

    def __init__(self, value: float) -> None:
        self.value = torch.tensor([value])

    def state_dict(self) -> State:
        return {"value": self.value}

    def load_state_dict(self, state: State) -> None:
        raise NotImplementedError


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the folder ``run``, until it is ended."""
    monkeypatch.setattr(ownership, "PATIENCE_SECONDS", 1.0)
    code = (
        "import sys, time, pathlib\nfrom genus.ownership import take\n"
        "take(pathlib.Path(sys.argv[1]))\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")])
    while not (tmp_path / "run" / MARK).exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_a_live_process_keeps_its_folder(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ConfigError, match=rf"in use by process {other.pid} .*kill {other.pid}"):
        take(tmp_path / "run")
    other.kill()  # and stays a zombie, as after a launcher's death
    while _state(other.pid) != "Z":
        time.sleep(0.02)
    token = take(tmp_path / "run")
    Owner(tmp_path / "run", token).check()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_number_used_again_is_another_process(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    holder = holder_of(tmp_path / "run")
    assert holder is not None
    later = dataclasses.replace(holder, born=holder.born + 1)
    (tmp_path / "run" / MARK).write_text(json.dumps(dataclasses.asdict(later)))
    take(tmp_path / "run")


def test_the_queue_decides_about_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "PATIENCE_SECONDS", 0.0)
    states = {"7": "RUNNING"}
    monkeypatch.setattr(ownership, "job_state", lambda job: states.get(job, ""))
    monkeypatch.setattr(ownership, "_lives_here", lambda holder: False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = take(tmp_path)
    assert first.startswith("7.0-")
    _forget_process(tmp_path)

    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(ConfigError, match=r"in use by SLURM job 7 .*scancel 7"):
        take(tmp_path)

    monkeypatch.setenv("SLURM_JOB_ID", "7")  # the same job, which SLURM has started again
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    second = take(tmp_path)
    with pytest.raises(NotOwnerError, match="now belongs to SLURM job 7"):
        Owner(tmp_path, first).check()
    _forget_process(tmp_path)

    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")  # a start that comes late
    with pytest.raises(ConfigError, match="in use"):
        take(tmp_path)
    Owner(tmp_path, second).check()

    states["7"] = "COMPLETED"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    take(tmp_path)


def _forget_process(folder: Path) -> None:
    """As if the mark were another process's: here all are this test's own."""
    mark = json.loads((folder / MARK).read_text())
    (folder / MARK).write_text(json.dumps({**mark, "pid": 1}))


def test_a_stale_writer_publishes_and_prunes_nothing(tmp_path: Path) -> None:
    world, folder = World(), tmp_path / "checkpoints"
    old = Owner(tmp_path, take(tmp_path))
    stale = Checkpoints(folder, world, keep_last=1, owner=old)
    stale.save({"a": Number(1)}, 10)
    stale.wait()
    new = Owner(tmp_path, take(tmp_path))
    fresh = Checkpoints(folder, world, keep_last=1, owner=new)
    stale.save({"a": Number(-1)}, 20)
    with pytest.raises(NotOwnerError):
        stale.wait()
    assert [path.name for path in published(folder)] == ["samples-000000000010"]
    with pytest.raises(NotOwnerError):
        stale._retain()
    fresh.save({"a": Number(2)}, 20)
    fresh.wait()
    assert [path.name for path in published(folder)] == ["samples-000000000020"]
    assert fault_of(published(folder)[0]) is None
    assert [path.name for path in folder.iterdir()] == ["samples-000000000020"]


def test_a_take_over_between_check_and_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cable is cut after the stale writer has looked at the mark and before it renames."""
    world, folder = World(), tmp_path / "checkpoints"
    stale = Checkpoints(folder, world, owner=Owner(tmp_path, take(tmp_path)))
    fresh: list[Checkpoints] = []
    rename = Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        if self.name.startswith(".saving-") and target.name.startswith("samples-") and not fresh:
            fresh.append(Checkpoints(folder, world, owner=Owner(tmp_path, take(tmp_path))))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut_off)
    stale.save({"a": Number(1)}, 10)
    with pytest.raises(Exception, match="No such file"):
        stale.wait()
    assert fresh
    assert published(folder) == []
    fresh[0].save({"a": Number(2)}, 10)
    fresh[0].wait()
    assert fault_of(published(folder)[0]) is None


def test_a_journal_of_another_gets_no_row(tmp_path: Path) -> None:
    journal = OwnedJournal(tmp_path / "events.jsonl", Owner(tmp_path, take(tmp_path)))
    journal.write({"event": "mine"})
    take(tmp_path)
    with pytest.raises(NotOwnerError):
        journal.write({"event": "no longer"})
    journal.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1
