"""Runs over bad data: the same with and without a kill, on one process or two, and a clear end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from genus.checkpoint_reader import digest, newest, published, read_tensors
from genus.tracking import read_bad_samples, read_events
from launching import BIN, command, kill_tree, run, start, wait_until

FASHION = Path(__file__).parents[1] / "data" / "fashion-1000"
STEPS = 80  # 1280 samples: more than an epoch, so every shard is met


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A shard is gone, and bytes of one image of another are changed."""
    folder = Path(shutil.copytree(FASHION, tmp_path / "damaged"))
    (folder / "000003.tar").unlink()
    content = bytearray((folder / "000006.tar").read_bytes())
    content[content.index(b"IDAT", 50_000) + 20] ^= 1
    (folder / "000006.tar").write_bytes(content)
    return folder


def arguments(name: str, data: Path, budget: int) -> tuple[str, ...]:
    return (
        "--preset", "tiny", "tracking.wandb=off", "train.sample_every=0", "run.root=.",
        f"run.name={name}", f"train.samples={STEPS * 16}", "train.checkpoint_every=320",
        f"data.url={data}", f"data.bad_samples={budget}", "data.window=100",
    )  # fmt: skip


def test_a_run_over_bad_data_is_exact_elastic_and_told(damaged: Path, tmp_path: Path) -> None:
    run(command(1, *arguments("straight", damaged, 126)), tmp_path)
    process = start(command(1, *arguments("killed", damaged, 126)), tmp_path)
    checkpoints = tmp_path / "killed" / "checkpoints"
    wait_until(lambda: bool(published(checkpoints)), process, "a checkpoint")
    kill_tree(process.pid)
    process.wait()
    assert not (tmp_path / "killed" / "done").exists()
    run(command(1, *arguments("killed", damaged, 126)), tmp_path)
    assert digest(newest(tmp_path / "killed")) == digest(newest(tmp_path / "straight"))

    run(command(2, *arguments("two", damaged, 126)), tmp_path)
    one, two = (read_tensors(newest(tmp_path / n), "networks.") for n in ("straight", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=2e-5)

    for name in ("straight", "killed", "two"):
        single, shard = sorted(read_bad_samples(tmp_path / name), key=lambda row: row["count"])
        assert (shard["shard"], shard["count"]) == (3, 125)
        assert "000003.tar is not there" in shard["why"]
        assert (single["sample"] // 125, single["count"]) == (6, 1)
        assert "crc32" in single["why"]
        events = [e for e in read_events(tmp_path / name) if e["event"] == "bad samples"]
        assert events[-1]["total"] == 126
    assert "bad samples  126" in run([str(BIN / "genus"), "show", "two"], tmp_path)


def test_too_much_bad_data_ends_all_ranks_with_one_message(damaged: Path, tmp_path: Path) -> None:
    output = run(command(2, *arguments("two", damaged, 20)), tmp_path, expect=1)
    assert output.count("data.bad_samples allows 20") == 1
    assert "000003.tar is not there" in output
    assert "Connection" not in output  # no rank was left waiting for another
    saved = published(tmp_path / "two" / "checkpoints")
    for checkpoint in saved:  # what was put up with is never more than was allowed
        scalars = json.loads((checkpoint / "meta.json").read_text())["scalars"]
        assert json.loads(scalars["stream"]["bad"])["shards"] == []
