"""Starting recipes as users do: real processes, real launchers, ended by pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def command(processes: int, *arguments: str, recipe: str = "recipes/diffusion.py") -> list[str]:
    """The command line of a recipe on ``processes`` CPU processes."""
    script = [str(ROOT / recipe), *arguments]
    if processes == 1:
        return [sys.executable, *script]
    config = ROOT / "launch" / "accelerate" / f"cpu{processes}.yaml"
    return [str(BIN / "accelerate"), "launch", "--config_file", str(config), *script]


def start(
    words: Sequence[str], folder: Path, log: Path | None = None, cuda: bool = False
) -> subprocess.Popen[bytes]:
    """Start it in ``folder``, one thread a process, GPUs hidden, output to ``log``."""
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": "offline",
    }
    if not cuda:  # what these tests say of the CPU must not depend on the machine
        variables["CUDA_VISIBLE_DEVICES"] = ""
    output = (log or folder / "output.txt").open("ab")
    return subprocess.Popen(words, cwd=folder, env=variables, stdout=output, stderr=output)


def run(
    words: Sequence[str],
    folder: Path,
    expect: int = 0,
    timeout: float = 240,
    cuda: bool = False,
) -> str:
    """Run it to its end and return its output; AssertionError if it ends otherwise."""
    log = folder / f"output-{time.monotonic_ns()}.txt"
    process = start(words, folder, log, cuda)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        raise AssertionError(f"{words} did not end in {timeout} s:\n{log.read_text()}") from None
    assert code == expect, f"{words} ended with {code}:\n{log.read_text()}"
    return log.read_text()


def descendants(pid: int) -> list[int]:
    """The process and all that it started, directly or not (torch's agent starts new sessions)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL to the process and its descendants, as a power cut would."""
    for one in descendants(pid):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Poll until the condition holds; AssertionError when the process ends before."""
    while not condition():
        assert process.poll() is None, f"the process ended before {what}"
        time.sleep(0.02)
