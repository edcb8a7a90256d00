"""The same run however it is cut: killed and resumed, on one or two processes, in micro-batches."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from genus.checkpoint_reader import digest, newest, published, read_tensors
from genus.tracking import read_events, read_metrics
from launching import BIN, command, descendants, kill_tree, run, start, wait_until

STEPS = 40
WIDER = {"recipes/diffusion.py": "network.channels=64", "recipes/flow.py": "network.width=96"}
"""Recipe -> what makes a step long enough for a kill to fall inside the run."""
RECIPES = pytest.mark.parametrize("recipe", WIDER)
COMMON = ("--preset", "tiny", "tracking.wandb=off", "train.sample_every=0", "run.root=.")


def arguments(name: str, samples: int = STEPS * 16, *more: str) -> tuple[str, ...]:
    return (*COMMON, f"run.name={name}", f"train.samples={samples}", *more)


def every_few_steps(name: str, recipe: str = "recipes/diffusion.py") -> tuple[str, ...]:
    return arguments(name, STEPS * 16, "train.checkpoint_every=80", WIDER[recipe])


@RECIPES
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    processes: int, recipe: str, tmp_path: Path
) -> None:
    straight_words, killed_words = (
        command(processes, *every_few_steps(name, recipe), recipe=recipe)
        for name in ("straight", "killed")
    )
    run(straight_words, tmp_path)
    process = start(killed_words, tmp_path)
    killed = tmp_path / "killed"
    wait_until(lambda: bool(published(killed / "checkpoints")), process, "a checkpoint")
    moment = random.SystemRandom().uniform(0, 0.5)
    try:
        process.wait(moment)
    except Exception:
        kill_tree(process.pid)
    process.wait()
    assert not (killed / "done").exists(), f"killed too late, after {moment:.2f} s more"
    reached = newest(killed).name
    output = run(killed_words, tmp_path)
    assert "resumed from samples-" in output, reached
    straight = digest(newest(tmp_path / "straight"))
    assert digest(newest(killed)) == straight, f"killed {moment:.3f} s after {reached}"
    rows = [row["samples"] for row in read_metrics(killed) if "step" in row]
    assert rows == sorted(set(rows))
    events = [event["event"] for event in read_events(killed)]
    assert events.count("initialised") == (1 if recipe == "recipes/flow.py" else 0)


def last_loss(folder: Path) -> float:
    """Of the run's one phase."""
    (loss,) = [v for k, v in read_metrics(folder)[-1].items() if k.endswith("/loss")]
    return float(loss)


@RECIPES
def test_one_and_two_processes_and_micro_batches_agree(recipe: str, tmp_path: Path) -> None:
    every = ("train.checkpoint_every=16", "train.keep_last=99")
    runs = {
        "whole": command(1, *arguments("whole", 20 * 16, *every), recipe=recipe),
        "micro": command(1, *arguments("micro", 20 * 16, "train.micro=4"), recipe=recipe),
        "two": command(2, *arguments("two", 20 * 16), recipe=recipe),
    }
    for words in runs.values():
        run(words, tmp_path)
    states = {name: read_tensors(newest(tmp_path / name), "networks.") for name in runs}
    first = read_tensors(published(tmp_path / "whole" / "checkpoints")[0], "networks.")
    moved = 0.0
    for name in ("micro", "two"):
        for key, value in states["whole"].items():
            torch.testing.assert_close(states[name][key], value, rtol=0, atol=1e-5)
            moved = max(moved, float((value - first[key]).abs().max()))
    assert moved > 0.005  # five hundred times the tolerance: the runs have learnt
    losses = {name: last_loss(tmp_path / name) for name in runs}
    assert losses["micro"] == pytest.approx(losses["whole"], abs=1e-5)
    assert losses["two"] == pytest.approx(losses["whole"], abs=1e-5)


def test_sigterm_saves_and_leaves_a_marker_and_the_rest_is_the_same(tmp_path: Path) -> None:
    process = start(command(2, *every_few_steps("stopped")), tmp_path)
    stopped = tmp_path / "stopped"
    wait_until(lambda: bool(published(stopped / "checkpoints")), process, "a checkpoint")
    process.send_signal(signal.SIGTERM)  # to the launcher, which tells the ranks
    process.wait()
    assert (stopped / "requeue").exists()
    assert not (stopped / "done").exists()
    finish = [event for event in read_events(stopped) if event["event"] == "finish"]
    assert finish[-1]["why"] == "stopped by SIGTERM"
    assert newest(stopped).name == f"samples-{finish[-1]['samples']:012d}"
    run(command(1, *every_few_steps("stopped")), tmp_path)  # elastic: two processes, now one
    assert (stopped / "done").exists()
    assert not (stopped / "requeue").exists()
    run(command(1, *every_few_steps("straight")), tmp_path)
    a, b = (read_tensors(newest(tmp_path / n), "networks.") for n in ("stopped", "straight"))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0, atol=1e-5)


def test_sigusr1_to_a_single_process_exits_zero(tmp_path: Path) -> None:
    process = start(command(1, *every_few_steps("stopped")), tmp_path)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    wait_until(lambda: bool(published(checkpoints)), process, "a checkpoint")
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 0
    assert (tmp_path / "stopped" / "requeue").exists()


def test_a_killed_launcher_leaves_no_orphan(tmp_path: Path) -> None:
    words = command(1, *every_few_steps("orphan"), "train.samples=100_000_000")
    launcher = [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "1", *words[1:]]
    process = start(launcher, tmp_path)
    folder = tmp_path / "orphan"
    wait_until(lambda: bool(published(folder / "checkpoints")), process, "a checkpoint")
    ranks = [pid for pid in descendants(process.pid) if pid != process.pid]
    process.kill()  # which it can tell nobody
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "requeue").exists()


def test_dropout_is_drawn_by_rule_too(tmp_path: Path) -> None:
    dropout = ("network.dropout=0.3",)
    run(command(1, *arguments("straight", 320, *dropout)), tmp_path)
    run(command(1, *arguments("cut", 160, *dropout)), tmp_path)
    run(command(1, *arguments("cut", 320, *dropout)), tmp_path)
    a, b = (digest(newest(tmp_path / name)) for name in ("straight", "cut"))
    assert a == b
