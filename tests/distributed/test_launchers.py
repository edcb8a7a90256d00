"""The same command under accelerate's, torch's and DeepSpeed's launchers is the same run."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from genus.checkpoint_reader import digest, newest
from genus.tracking import read_events
from launching import BIN, ROOT, run

pytestmark = pytest.mark.slow

RECIPE = str(ROOT / "recipes" / "flow.py")
ARGUMENTS = (
    "--preset", "tiny", "tracking.wandb=off", "train.samples=80", "train.sample_every=0",
)  # fmt: skip
ZERO = ROOT / "launch" / "deepspeed" / "zero2.json"


def accelerate(file: str) -> list[str]:
    config = str(ROOT / "launch" / "accelerate" / file)
    words = [str(BIN / "accelerate"), "launch", "--config_file", config]
    return [*words, "--num_processes", "2", "--mixed_precision", "no", RECIPE]


TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", RECIPE]
DEEPSPEED = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", "PORT", RECIPE]
SAID = ("--deepspeed_config", str(ZERO))
LAUNCHES = {
    "DDP": [accelerate("cpu2.yaml"), TORCHRUN, DEEPSPEED],
    "ZeRO-2": [accelerate("zero2.yaml"), [*TORCHRUN, *SAID], [*DEEPSPEED, *SAID]],
    "FSDP2": [accelerate("fsdp2.yaml"), [*TORCHRUN, "train.strategy=fsdp2"]],
}


def free_port() -> int:
    """DeepSpeed's launcher takes none by itself: its usual one may be in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("strategy", LAUNCHES)
def test_launchers_give_the_same_digest(strategy: str, tmp_path: Path) -> None:
    # accelerate's file names DeepSpeed's from the repository's root
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    digests = set()
    for number, words in enumerate(LAUNCHES[strategy]):
        words = [str(free_port()) if word == "PORT" else word for word in words]
        run([*words, *ARGUMENTS, f"run.name={number}"], tmp_path)
        folder = tmp_path / "runs" / str(number)
        digests.add(digest(newest(folder))["total"])
        (start,) = [e for e in read_events(folder) if e["event"] == "start"]
        assert start["world"] == 2
        assert (strategy in start["on"]) == (strategy != "DDP"), start["on"]
    assert len(digests) == 1
