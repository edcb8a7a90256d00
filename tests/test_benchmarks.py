"""Every benchmark runs with --quick --json and prints rows of the agreed form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launching import ROOT, run

SCRIPTS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if "--quick" in p.read_text())


def test_the_benchmarks_are_there() -> None:
    assert {"loop_overhead", "train_step"} <= {path.stem for path in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_quick_rows_have_the_agreed_form(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENUS_DATA", str(ROOT / "data"))  # what is here is not fetched again
    output = run([sys.executable, str(script), "--quick", "--json"], tmp_path, timeout=500)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert rows
    for row in rows:
        assert {"row", "ours", "peer", "peer_name", "ratio", "goal"} <= set(row)
        assert row["ratio"] > 0
