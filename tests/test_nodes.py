"""A process's share of its machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from genus.nodes import cores_here, processes_here


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given on Linux")
def test_only_cores_that_were_given_count() -> None:
    """As in a SLURM job's cgroup: the machine has more."""
    own = next(iter(os.sched_getaffinity(0)))
    code = f"import os; os.sched_setaffinity(0, [{own}]); import genus.nodes as n; "
    code += "print(n.cores_here())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert cores_here() == len(os.sched_getaffinity(0))


def test_launchers_say_how_many_processes_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes_here() is None
    monkeypatch.setenv("LOCAL_SIZE", "3")
    assert processes_here() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes_here() == 2
