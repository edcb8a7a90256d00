"""What genus plan predicts against what the run measures, on this CPU, for every recipe.

    python benchmarks/plan.py [--json] [--out FILE] [--quick] [--only RECIPE]

Of each recipe its preset tiny and its default one. The measured run is the recipe's own main(),
in a process of its own, with nothing but status lines, evaluations and checkpoints switched off.

Memory: bytes of tensors, as torch's CPU allocator reports them to torch.profiler while the run
trains, its weights included; the highest value between the end of the first step and the end of the
last. That is what can be attributed to the run: resident memory also holds libraries, what malloc
keeps, and oneDNN's scratch space. Predicted: the trace of a step of fake tensors, which allocates
nothing and knows nothing of the profiler.

Time: after each step of the run, the planner's trial takes one, in the same process, so that both
meet the same load of the machine; medians over all steps but the first. A step is measured from
the end of the interruption to the end of the step. Wall clock, and CPU time of the process beside
it, which neighbours disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from passport import passport
from torch.profiler import ProfilerActivity, profile

from genus.meter import Meter
from genus.plan.estimate import traces
from genus.plan.job import read_job
from genus.plan.speed import Trial
from genus.recipe_command import import_recipe

ROOT = Path(__file__).parents[1]
MEMORY_GOAL, TIME_GOAL = 0.10, 0.20


@contextmanager
def after_each_step(do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` at the end of each step of the run within."""
    kept = Meter.step

    def step(self: Meter) -> None:
        kept(self)
        do()

    Meter.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Meter.step = kept  # type: ignore[method-assign]


def train(module: ModuleType, words: list[str], steps: int, batch: int) -> None:
    """The recipe's own main(), for so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        off = [f"train.{what}_every=0" for what in ("status", "sample", "validate", "checkpoint")]
        length = f"train.samples={steps * batch}"
        kept, sys.argv = (
            sys.argv,
            [str(module.__file__), *words, *off, length, f"run.root={folder}"],
        )
        try:
            module.main()
        finally:
            sys.argv = kept


def measured_peak(module: ModuleType, words: list[str], steps: int, batch: int) -> int:
    """Bytes, by the allocator's own account."""
    name = "genus: end of a step"

    def mark() -> None:
        with torch.profiler.record_function(name):
            pass

    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        after_each_step(mark),
    ):
        train(module, words, steps, batch)
    results: Any = profiled.profiler
    stack = list(results.kineto_results.experimental_event_tree())
    ends: list[int] = []
    totals: list[tuple[int, int]] = []
    while stack:
        event = stack.pop()
        stack += event.children
        if event.name == name:
            ends.append(event.start_time_ns)
        total = getattr(event.extra_fields, "total_allocated", None)
        if total is not None:
            totals.append((event.start_time_ns, total))
    first, last = min(ends), max(ends)
    return max(total for when, total in totals if first <= when <= last)


def times(
    module: ModuleType, words: list[str], steps: int, batch: int, trials: tuple[Trial, Trial]
) -> dict[str, float]:
    """Milliseconds of a step, of the run and of the trials (wall clock, CPU time)."""
    clocks = time.perf_counter, time.process_time
    run: list[tuple[float, ...]] = []
    ours: tuple[list[float], list[float]] = ([], [])
    began = [clock() for clock in clocks]
    micros = trials[0].job.share / trials[0].job.micro

    def alternate() -> None:
        run.append(tuple(clock() - start for clock, start in zip(clocks, began, strict=True)))
        for trial, found in zip(trials, ours, strict=True):
            found.append(trial.take().step(micros))
        began[:] = [clock() for clock in clocks]

    with after_each_step(alternate):
        train(module, words, steps, batch)
    wall, cpu = (statistics.median(step[i] for step in run[1:]) for i in (0, 1))
    predicted = [statistics.median(found[1:]) for found in ours]
    return {
        "step_ms_predicted": 1000 * predicted[0],
        "step_ms": 1000 * wall,
        "cpu_ms_predicted": 1000 * predicted[1],
        "cpu_ms": 1000 * cpu,
    }


def row_of(recipe: Path, words: list[str], quick: bool) -> dict[str, Any]:
    """One row of the table."""
    job, module = read_job(recipe, words), import_recipe(recipe)
    batch, steps = job.config.train.batch, 6 if quick else 24
    predicted = max(traced.peak for traced in traces(job, job.micro, gpu=False))
    peak = measured_peak(module, words, steps, batch)
    trials = Trial(job, time.perf_counter), Trial(job, time.process_time)
    found = times(module, words, steps, batch, trials)
    return {
        "row": f"{recipe.stem} {job.preset}",
        "steps": steps,
        "batch": batch,
        "peak_mib_predicted": round(predicted / 2**20, 3),
        "peak_mib": round(peak / 2**20, 3),
        "memory_ratio": round(predicted / peak, 4),
        "memory_goal": MEMORY_GOAL,
        **{name: round(value, 2) for name, value in found.items()},
        "time_ratio": round(found["step_ms_predicted"] / found["step_ms"], 4),
        "cpu_time_ratio": round(found["cpu_ms_predicted"] / found["cpu_ms"], 4),
        "time_goal": TIME_GOAL,
    }


def in_a_process(recipe: Path, words: list[str], quick: bool) -> dict[str, Any]:
    """``row_of`` in a process that has done nothing before: the allocator's account begins at 0."""
    asked = [sys.executable, __file__, "--row", str(recipe), *words]
    found = subprocess.run(
        [*asked, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, text=True, check=True
    )
    row: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a line of JSON a row")
    parser.add_argument("--out", type=Path, help="file for the rows and the passport")
    parser.add_argument("--quick", action="store_true", help="6 steps instead of 24, and tiny only")
    parser.add_argument("--only", default="", help="one recipe")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row:
        words = ["--preset", arguments.preset] if arguments.preset else []
        print(json.dumps(row_of(arguments.row, words, arguments.quick)))
        return
    rows = []
    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        if arguments.only not in ("", recipe.stem):
            continue
        for words in [["--preset", "tiny"], *([] if arguments.quick else [[]])]:
            row = in_a_process(recipe, words, arguments.quick)
            rows.append(row)
            if arguments.json:
                beside = {"ours": row["step_ms_predicted"], "peer": row["step_ms"]}
                beside |= {"peer_name": "measured", "ratio": row["time_ratio"], "goal": 1.0}
                print(json.dumps({**row, **beside}), flush=True)
                continue
            print(
                f"{row['row']:28} memory {row['peak_mib_predicted']:8.2f} / {row['peak_mib']:8.2f} "
                f"MiB = {row['memory_ratio']:.3f}; step {row['step_ms_predicted']:8.2f} / "
                f"{row['step_ms']:8.2f} ms = {row['time_ratio']:.3f}; in CPU time "
                f"{row['cpu_time_ratio']:.3f}",
                flush=True,
            )
    if arguments.out:
        body = {"passport": passport("python benchmarks/plan.py"), "rows": rows}
        arguments.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
