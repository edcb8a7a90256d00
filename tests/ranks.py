"""Starting scripts on several ranks, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import genus

SOURCE = Path(genus.__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """This process's variables, without a launcher's, with the package importable."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    return {**kept, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **more}


def run_ranks(script: Path, *arguments: str, size: int = 2, timeout: float = 120) -> list[str]:
    """Run a script on ``size`` connected ranks; their outputs. AssertionError if one fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = []
    for rank in range(size):
        where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(script), *arguments]
        ranks.append(
            subprocess.Popen(
                command,
                env=environment(**where),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert rank.returncode == 0, f"rank {number}:\n{output[-4000:]}"
    return outputs
