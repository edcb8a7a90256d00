"""Every recipe under every strategy on two real processes: the same weights, moments and averages
as one process's, resumed to the bit, and carried over to any other strategy.

What this finds is the table of docs/launch.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from genus.checkpoint_reader import digest, newest, read_meta, read_tensors
from launching import ROOT
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first test waits for all runs

STRATEGIES = {
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "hybrid": "hybrid",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
}
RECIPES = sorted(ROOT.glob("recipes/*.py"))
ADAMW = ("optim=AdamWConfig", "optim.lr=1e-3", "optim.eps=1e-6")
MUON = ("optim=MuonConfig", "optim.adamw_lr=2e-5")
OPTIMIZERS = {"AdamW": ADAMW, "Muon": MUON}
STEADIER = {("gan", "AdamW"): ("optim.eps=1e-3",)}
"""Steady: some of a transformer's gradients are about 1e-8, and Adam divides by them."""
CLOSE = {"AdamW": 1e-5, "Muon": 1e-4}
"""Muon lifts the smallest directions of a gradient, and their rounding with them."""
STEPS, AT = 8, 4
BATCH = 16
COMMON = (
    "--preset", "tiny", "tracking.wandb=off", "train.sample_every=0", "train.validate_every=64",
    f"train.samples={STEPS * BATCH}", f"train.checkpoint_every={AT * BATCH}", "train.keep_last=9",
    "train.micro=4", "train.clip=0.5", f"train.batch={BATCH}",
)  # fmt: skip
CASES = [(recipe, optimizer) for recipe in RECIPES for optimizer in OPTIMIZERS]
Outcomes = Mapping[tuple[str, str, str], str]


def name_of(recipe: Path, optimizer: str, *more: str) -> str:
    return "-".join([recipe.stem, optimizer, *more])


def job(folder: Path, recipe: Path, optimizer: str, strategy: str, name: str) -> list[object]:
    more = STEADIER.get((recipe.stem, optimizer), ())
    words = [*COMMON, *OPTIMIZERS[optimizer], *more, f"train.strategy={strategy}"]
    return [str(recipe), [*words, f"run.root={folder}", f"run.name={name}"]]


def work(folder: Path, jobs: list[list[object]], size: int) -> list[str]:
    """Outcomes of the jobs that are runs, in their order."""
    file = folder / f"jobs-{size}-{len(list(folder.glob('jobs-*')))}.json"
    file.write_text(json.dumps(jobs))
    script = Path(__file__).with_name("strategy_worker.py")
    output = run_ranks(script, str(file), size=size, timeout=1500)[0]
    found = [json.loads(line)[2] for line in output.splitlines() if line.startswith('["')]
    assert len(found) == sum(recipe != "copy" for recipe, _ in jobs), output[-3000:]
    return found


def following(strategy: str) -> str:
    """Another strategy, which both optimizers have where the first one has."""
    return {"ddp": "fsdp2", "fsdp2": "ddp", "hybrid": "fsdp2"}.get(
        strategy, {"zero1": "zero3", "zero2": "fsdp2", "zero3": "zero2"}.get(strategy, "")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Outcomes:
    """All runs: what became of each recipe, optimizer and strategy."""
    alone = [job(folder, r, o, "ddp", name_of(r, o, "one")) for r, o in CASES]
    assert set(work(folder, alone, 1)) == {"ok"}

    keys = [(r, o, s) for r, o in CASES for s in STRATEGIES]
    jobs = [job(folder, r, o, s, name_of(r, o, s)) for r, o, s in keys]
    told = work(folder, jobs, 2)
    found = {(r.stem, o, s): outcome for (r, o, s), outcome in zip(keys, told, strict=True)}

    carried: list[list[object]] = []
    shrunk: list[list[object]] = []
    for recipe, optimizer, strategy in keys:
        if found[recipe.stem, optimizer, strategy] != "ok":
            continue
        name = name_of(recipe, optimizer, strategy)
        for to, where in ((strategy, carried), (following(strategy), carried), ("ddp", shrunk)):
            copied = f"{name}-to-{to}" if where is carried else f"{name}-to-one"
            where.append(["copy", [str(folder / name), str(folder / copied), str(AT * BATCH)]])
            where.append(job(folder, recipe, optimizer, to, copied))
    assert set(work(folder, carried, 2)) == {"ok"}
    assert set(work(folder, shrunk, 1)) == {"ok"}
    return found


def difference(one: Path, other: Path) -> tuple[float, str]:
    """Largest difference of any tensor of two runs' last states, relative to its largest number;
    AssertionError where they hold different things."""
    a, b = read_tensors(newest(one)), read_tensors(newest(other))
    assert a.keys() == b.keys()
    assert read_meta(newest(one))["scalars"] == read_meta(newest(other))["scalars"]
    found = []
    for key, value in a.items():
        assert value.shape == b[key].shape, key
        largest = max(float(value.abs().max()), 1e-3)
        found.append((float((value.double() - b[key].double()).abs().max()) / largest, key))
    return max(found)


every_case = pytest.mark.parametrize(
    ("recipe", "optimizer", "strategy"),
    [
        pytest.param(r, o, s, id=f"{r.stem}-{o}-{s}")
        for r, o in CASES
        for s in STRATEGIES
    ],
)  # fmt: skip


@every_case
def test_the_same_as_one_process_or_refused(
    outcomes: Outcomes, folder: Path, recipe: Path, optimizer: str, strategy: str
) -> None:
    outcome = outcomes[recipe.stem, optimizer, strategy]
    if optimizer == "Muon" and strategy.startswith("zero"):
        assert "take optim=AdamWConfig, or train.strategy=ddp or fsdp2" in outcome
        return
    assert outcome == "ok"
    one, two = (
        folder / name_of(recipe, optimizer, "one"),
        folder / name_of(recipe, optimizer, strategy),
    )
    off, where = difference(one, two)
    assert off < CLOSE[optimizer], where
    events = (two / "events.jsonl").read_text()
    shown = {"ddp": "2 processes, cpu", "hybrid": "hybrid FSDP2, 2 replicas"}
    name = STRATEGIES[strategy]
    assert shown.get(strategy, f"DeepSpeed {name}" if "ZeRO" in name else name) in events


@every_case
def test_resumed_to_the_bit_and_carried_over(
    outcomes: Outcomes, folder: Path, recipe: Path, optimizer: str, strategy: str
) -> None:
    if outcomes[recipe.stem, optimizer, strategy] != "ok":
        pytest.skip("refused")
    straight = folder / name_of(recipe, optimizer, strategy)
    resumed = folder / f"{straight.name}-to-{strategy}"
    assert digest(newest(resumed)) == digest(newest(straight))
    assert '"resumed"' in (resumed / "events.jsonl").read_text()
    for other in (f"{straight.name}-to-{following(strategy)}", f"{straight.name}-to-one"):
        off, where = difference(straight, folder / other)
        assert off < CLOSE[optimizer], (other, where)


def test_the_table_in_the_docs_is_what_was_found(outcomes: Outcomes) -> None:
    page = (ROOT / "docs" / "launch.md").read_text()
    rows = re.findall(r"^\| (\w+), (AdamW|Muon) \| (.*) \|$", page, re.MULTILINE)
    told = {
        (recipe, optimizer, strategy): cell.strip()
        for recipe, optimizer, cells in rows
        for strategy, cell in zip(STRATEGIES, cells.split("|"), strict=True)
    }
    assert told == {key: "yes" if o == "ok" else "refused" for key, o in outcomes.items()}


def test_the_averages_of_a_sharded_run_draw_samples(outcomes: Outcomes, folder: Path) -> None:
    """What was trained in pieces is a whole model to every command."""
    key = ("flow", "AdamW", "zero3")
    assert outcomes[key] == "ok"
    one, pieces = folder / "flow-AdamW-one", folder / "flow-AdamW-zero3"
    a, b = (read_tensors(newest(run), "ema/0.050/") for run in (one, pieces))
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6) for key in a)
