"""The same run however it is cut: killed and resumed, on one or two processes, in micro-batches."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genus.checkpoint_reader import digest, newest, published, read_tensors
from genus.data.pack_pairs import Pair, pack_pairs
from genus.data.pack_text import pack_text
from genus.tracking import read_events, read_metrics
from launching import BIN, ROOT, command, descendants, kill_tree, run, start, wait_until

STEPS = 40
DIFFUSION = "recipes/diffusion.py"
FLOW = "recipes/flow.py"
AUTOREGRESSIVE = "recipes/autoregressive.py"
SEQ2SEQ = "recipes/seq2seq.py"
GAN = "recipes/gan.py"
WIDER = {
    DIFFUSION: "network.channels=64",
    FLOW: "network.width=96",
    AUTOREGRESSIVE: "network.width=128",
    SEQ2SEQ: "network.width=96",
    GAN: "network.channels_base=256",
}
"""Recipe -> what makes a step long enough for a kill to fall inside the run."""
STEADY = {
    AUTOREGRESSIVE: ("optim.lr=1e-3", "optim.eps=1e-6"),
    SEQ2SEQ: ("optim=AdamWConfig", "optim.lr=1e-3", "optim.eps=1e-6"),
    GAN: ("optim.lr=1e-3", "optim.eps=1e-3"),
}
"""Recipe -> what keeps rounding small: some of a transformer's gradients are about 1e-8, and Adam
divides by them. With the preset's settings, runs of the same sums in another order end 3e-5 apart,
with these 2e-7. A GAN's leaky ReLUs have kinks, and at one of them rounding turns a slope round."""
COMMON = ("--preset", "tiny", "tracking.wandb=off", "train.sample_every=0", "run.root=.")


def cases(*slow: tuple[int, str]) -> pytest.MarkDecorator:
    """One and two processes of every recipe; those in ``slow`` outside the default tier."""
    every = [(processes, recipe) for recipe in WIDER for processes in (1, 2)]
    marked = [pytest.param(*c, marks=[pytest.mark.slow] if c in slow else []) for c in every]
    return pytest.mark.parametrize(("processes", "recipe"), marked)


def arguments(name: str, samples: int = STEPS * 16, *more: str) -> tuple[str, ...]:
    return (*COMMON, f"run.name={name}", f"train.samples={samples}", *more)


def every_few_steps(name: str, recipe: str = DIFFUSION) -> tuple[str, ...]:
    return arguments(name, STEPS * 16, "train.checkpoint_every=80", WIDER[recipe])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Arguments of runs on packed text: two shards of unequal length, 244 windows, so that even
    the short runs begin a second epoch; a window holds parts of several documents."""
    folder = tmp_path_factory.mktemp("text")
    written = (ROOT / "tests" / "data" / "shakespeare.txt").read_text()[:8000]
    (folder / "plays.txt").write_text(written)
    packed = pack_text(
        [folder / "plays.txt"],
        folder / "shards",
        tokenizer="characters",
        separator="\n\n",
        shard_tokens=4500,
    )
    assert len(packed.shards) == 2
    data = (f"data.url={folder / 'shards'}", "data.size=32")
    return (*data, "objective.documents=true", "objective.label_dropout=0")


def kill_and_resume(processes: int, recipe: str, folder: Path, *more: str) -> Path:
    """The folder of a run that was killed and resumed, which equals an uninterrupted one's."""
    straight_words, killed_words = (
        command(processes, *every_few_steps(name, recipe), *more, recipe=recipe)
        for name in ("straight", "killed")
    )
    run(straight_words, folder)
    process = start(killed_words, folder)
    killed = folder / "killed"
    wait_until(lambda: bool(published(killed / "checkpoints")), process, "a checkpoint")
    moment = random.SystemRandom().uniform(0, 0.5)
    try:
        process.wait(moment)
    except Exception:
        kill_tree(process.pid)
    process.wait()
    assert not (killed / "done").exists(), f"killed too late, after {moment:.2f} s more"
    reached = newest(killed).name
    output = run(killed_words, folder)
    assert "resumed from samples-" in output, reached
    straight = digest(newest(folder / "straight"))
    assert digest(newest(killed)) == straight, f"killed {moment:.3f} s after {reached}"
    rows = [row["samples"] for row in read_metrics(killed) if "step" in row]
    assert rows == sorted(set(rows))
    return killed


@cases((2, AUTOREGRESSIVE), (2, SEQ2SEQ), (2, DIFFUSION), (2, FLOW), (1, GAN))
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    processes: int, recipe: str, tmp_path: Path
) -> None:
    killed = kill_and_resume(processes, recipe, tmp_path)
    events = [event["event"] for event in read_events(killed)]
    assert events.count("initialised") == (1 if recipe == FLOW else 0)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_and_resumed_run_on_text_equals_the_uninterrupted_one(
    processes: int, text: tuple[str, ...], tmp_path: Path
) -> None:
    kill_and_resume(processes, AUTOREGRESSIVE, tmp_path, *text)


@pytest.mark.slow
def test_killed_and_resumed_run_on_sounds_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    """With what draws random numbers in training: masks and dropout; and with CTC."""
    rng = np.random.default_rng(0)
    pairs = [
        Pair(target=rng.integers(0, 9, n).tolist(), frames=rng.normal(size=(40 + n, 8)))
        for n in rng.integers(3, 9, 64)
    ]
    pack_pairs(pairs, tmp_path / "sounds", vocabulary=10, end=9)
    more = ("data.url=../sounds", "objective.ctc=0.5", "objective.source.masks=2",
            "objective.source.stack=2", "network.dropout=0.2")  # fmt: skip
    (tmp_path / "runs").mkdir()
    kill_and_resume(2, SEQ2SEQ, tmp_path / "runs", *more)


def last_loss(folder: Path) -> float:
    """Of the run's first phase."""
    losses = [v for row in read_metrics(folder) for k, v in row.items() if k.endswith("/loss")]
    return float(losses[-1])


def agree(recipe: str, folder: Path, others: dict[str, tuple[int, str]], *more: str) -> None:
    """A run on one process in whole batches ends as ``others`` do: name -> (processes, an
    argument)."""
    every = ("train.checkpoint_every=16", "train.keep_last=99")
    more = (*STEADY.get(recipe, ()), *more)
    run(command(1, *arguments("whole", 20 * 16, *every), *more, recipe=recipe), folder)
    for name, (processes, argument) in others.items():
        words = arguments(name, 20 * 16, argument)
        run(command(processes, *words, *more, recipe=recipe), folder)
    whole = read_tensors(newest(folder / "whole"), "networks.")
    found = read_tensors(newest(folder / "whole"), "objective/")
    first = read_tensors(published(folder / "whole" / "checkpoints")[0], "networks.")
    for name in others:
        state = read_tensors(newest(folder / name), "networks.")
        for key, value in whole.items():
            torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-5)
        for key, value in read_tensors(newest(folder / name), "objective/").items():
            torch.testing.assert_close(value, found[key], rtol=0, atol=1e-5)
        if recipe != SEQ2SEQ:  # whose metric is a mean of ratios, one a micro-batch
            assert last_loss(folder / name) == pytest.approx(last_loss(folder / "whole"), abs=1e-5)
    moved = max(float((value - first[key]).abs().max()) for key, value in whole.items())
    assert moved > 0.005  # five hundred times the tolerance: the runs have learnt


@pytest.mark.parametrize("recipe", WIDER)
def test_one_and_two_processes_and_micro_batches_agree(recipe: str, tmp_path: Path) -> None:
    agree(recipe, tmp_path, {"micro": (1, "train.micro=4"), "two": (2, "train.micro=0")})


def test_one_and_two_processes_agree_on_text(text: tuple[str, ...], tmp_path: Path) -> None:
    agree(AUTOREGRESSIVE, tmp_path, {"two": (2, "train.micro=4")}, *text)


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
