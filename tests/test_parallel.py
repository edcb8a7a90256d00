"""The world is what the launcher promised, or the run does not begin."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from genus.errors import ConfigError
from genus.optim.build import AdamWConfig
from genus.parallel import World
from genus.strategies.data_parallel import DataParallel
from ranks import environment

ROOT = Path(__file__).parents[1]
CHECKS = [str(ROOT / "tests" / "world_checks.py")]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
CPU1 = ["--config_file", str(ROOT / "launch" / "accelerate" / "cpu1.yaml")]
CPU2 = ["--config_file", str(ROOT / "launch" / "accelerate" / "cpu2.yaml")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

LAUNCHES = {
    "cpu2.yaml": [*ACCELERATE, *CPU2, *CHECKS, "2", "auto"],
    "cpu2.yaml beside it": [*ACCELERATE, *CPU2, *CHECKS, "2", "auto"],
    "torchrun": [*TORCHRUN, *CHECKS, "2", "auto"],
    "cpu1.yaml, bf16": [*ACCELERATE, *CPU1, "--mixed_precision", "bf16", *CHECKS, "1", "auto"],
    "--cpu": [*ACCELERATE, "--cpu", "--num_processes", "2", *CHECKS, "2", "auto"],
    "no kind": [*ACCELERATE, "--num_processes", "2", *CHECKS, "2", "auto"],
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str]]]:
    """Exit code and output of every launch. All at once: imports take most of their time."""
    home = tmp_path_factory.mktemp("home")  # no accelerate config of the user's
    variables = environment(HOME=str(home), HF_HOME=str(home), CUDA_VISIBLE_DEVICES="")
    processes, outputs = {}, {}
    for name, command in LAUNCHES.items():
        outputs[name] = home / f"{len(outputs)}.txt"
        with outputs[name].open("wb") as file:
            processes[name] = subprocess.Popen(command, env=variables, stdout=file, stderr=file)
    try:
        codes = {name: process.wait(240) for name, process in processes.items()}
        yield {name: (code, outputs[name].read_text()) for name, code in codes.items()}
    finally:
        for process in processes.values():
            process.terminate()


@pytest.mark.parametrize(
    ("name", "size", "described"),
    [
        ("cpu2.yaml", 2, "2 processes, cpu, fp32"),
        ("cpu2.yaml beside it", 2, "2 processes, cpu, fp32"),
        ("torchrun", 2, "2 processes, cpu, fp32"),
        ("cpu1.yaml, bf16", 1, "1 process, cpu, bf16"),
    ],
)
def test_worlds(launched: dict[str, tuple[int, str]], name: str, size: int, described: str) -> None:
    code, output = launched[name]
    assert code == 0, output
    (line,) = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert line["size"] == size
    assert line["is"].startswith(described)


@pytest.mark.parametrize("name", ["--cpu", "no kind"])
def test_refusals(launched: dict[str, tuple[int, str]], name: str) -> None:
    code, output = launched[name]
    assert code != 0  # accelerate's own; the script's is told in its message
    assert "returned non-zero exit status 2" in output
    assert "error: accelerate was asked for several processes but starts only one" in output
    assert output.count("error: ") == 1
    assert '"size"' not in output


# ---- one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launched_with", "asked", "said"),
    [
        ("bf16", "fp32", "train.precision=fp32 contradicts accelerate's --mixed_precision bf16"),
        ("fp8", "auto", "fp8 needs a GPU with float8 products"),
    ],
)
def test_contradicting_precisions(
    monkeypatch: pytest.MonkeyPatch, launched_with: str, asked: str, said: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched_with)
    with pytest.raises(ConfigError, match=said):
        World(asked)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fp16_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU: take bf16 or fp32"):
        World("fp16")


def test_a_promise_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    World()  # accelerate keeps the first world of a process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"promised 2 processes .* connected 1: launch with"):
        World()


def test_one_process_agrees_at_once() -> None:
    world = World()
    assert world.agree([True, False]) == [True, False]
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert world.mean(torch.tensor(2.0)) == 2.0


def test_only_the_trained_networks_have_gradients() -> None:
    world = World()
    networks: dict[str, nn.Module] = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    fixed = networks["a"].get_parameter("bias").requires_grad_(False)
    mine = DataParallel(world, networks, AdamWConfig(), clip=0.0)
    for trained in ("a", "b", "a"):
        with mine.only([trained], last=True):
            grads = {n: [p.requires_grad for p in net.parameters()] for n, net in networks.items()}
        assert grads == {"a": [trained == "a", False], "b": [trained == "b"] * 2}
        assert not fixed.requires_grad
