"""A kill at any moment of a save leaves the newest published checkpoint whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import genus

KILLS = 50


def test_fifty_kills_while_saving(tmp_path: Path) -> None:
    """kill_saves.py checks after each kill that the newest checkpoint loads, holds exactly the
    values of its progress, and is no older than the last one that was reported as published."""
    script = Path(__file__).with_name("kill_saves.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(genus.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(KILLS), "1"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == KILLS
    assert not any(report["damaged"] for report in reports)
    samples = [report["samples"] for report in reports]
    assert samples == sorted(set(samples))  # every life got further

    # The kills that chose their moment were in every stage.
    chosen = [report["before"] for report in reports if report["before"]]
    stages = {
        "reserve": "os.mkdir .saving-",
        "write": "open __0_0.distcp",
        "index": "os.rename .metadata.tmp",
        "verify": "open .metadata",
        "seal": "open meta.json",
        "publish": "os.rename .saving-",
        "sync": "open checkpoints",
        "retain": "os.rename samples-",
        "prune": "os.rmdir .trash-",
    }
    for stage, operation in stages.items():
        assert any(f"before {operation}" in moment for moment in chosen), stage
    assert len({tuple(report["left"]) for report in reports}) >= 4
