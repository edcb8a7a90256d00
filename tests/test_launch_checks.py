"""Each launch check passes where all is well, and says what is wrong where it is not."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from genus import launch_checks as checks
from genus.errors import ConfigError
from genus.snapshot import hash_of


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """RUN/slurm/1 with a file of code, and a checkpoint that took 5 s."""
    folder = tmp_path / "run" / "slurm" / "1"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "a.py").write_text("a = 1\n")
    about = {"files": ["a.py"], "hash": hash_of(folder / "code", ["a.py"])}
    (folder / "snapshot.json").write_text(json.dumps(about))
    checkpoint = tmp_path / "run" / "checkpoints" / "samples-000000000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "meta.json").write_text(json.dumps({"seconds": 5.0}))
    return folder


def test_folder_and_code(submission: Path) -> None:
    assert checks.check_folder(submission) == submission.parents[1]
    checks.check_code(submission)
    (submission / "code" / "a.py").write_text("a = 2\n")
    with pytest.raises(ConfigError, match="is not what was submitted"):
        checks.check_code(submission)
    (submission / "code" / "a.py").unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        checks.check_code(submission)
    with pytest.raises(ConfigError, match="not seen here"):
        checks.check_folder(submission.with_name("2"))


def test_nodes_meet_in_the_run_folder(tmp_path: Path) -> None:
    other = threading.Thread(target=checks.meet, args=(tmp_path, 1, 2))
    other.start()
    checks.meet(tmp_path, 0, 2)
    other.join()
    with pytest.raises(ConfigError, match="nothing of node 2 of the job"):
        checks.meet(tmp_path, 0, 3, limit=0.2)


def test_clocks_are_compared_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    first = threading.Thread(target=checks.serve_time, args=(port, 1))
    first.start()
    lead = checks.ask_time(("localhost", port))
    first.join()
    assert abs(lead) < 1
    checks.check_clock(lead)
    with pytest.raises(ConfigError, match=r"clock is -9.0 s off"):
        checks.check_clock(-9.0)
    with pytest.raises(ConfigError, match="1 of 1 other nodes did not come"):
        checks.serve_time(port, 1, limit=0.2)
    with pytest.raises(ConfigError, match="can't be reached"):
        checks.ask_time(("localhost", port), limit=0.2)


def test_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check_interface({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "^docker"})
    with pytest.raises(ConfigError, match="NCCL_SOCKET_IFNAME=hsn, but the interfaces are"):
        checks.check_interface({"NCCL_SOCKET_IFNAME": "hsn"})
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("127.0.1.1", 0))])
    with pytest.raises(ConfigError, match=r"stands for 127.0.1.1, where no other node"):
        checks.check_interface({})
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("10.0.0.1", 0))])
    checks.check_interface({})


def test_room_and_grace(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = submission.parents[1]
    checks.check_disk(run)
    checks.check_grace(run, 6.0)
    with pytest.raises(ConfigError, match=r"took 5 s to write.* --grace 10"):
        checks.check_grace(run, 4.0)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 20}))
    with pytest.raises(ConfigError, match="make room"):
        checks.check_disk(run)
