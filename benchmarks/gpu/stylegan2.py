"""StyleGAN2 in training on one GPU at 256 pixels: seconds per thousand images.

    python benchmarks/gpu/stylegan2.py [--json] [--quick] [--only CASE] [--micro 64] [--profile]
    python benchmarks/gpu/stylegan2.py --tiny            # every line but CUDA's, on a CPU, too

The preset stylegan2-ffhq256 of recipes/gan.py, batch 64: whole cycles of 16 steps, in which each
phase is as often due as in a run, R1 once and path lengths four times, on images of noise in
memory; Adam and the average of the weights are part of a step, data, log and checkpoints are not.
Medians of cycles, beside the goal for an H100; rows have each phase's share, and the memory at the
peak. A micro-batch is as large as fits.

Cases differ in precision and in augmentation (ADA's "bgc", whose work does not depend on p); in
fp32 convolutions may round their inputs to TF32, which is torch's default and so a run's. A
compiled network can't be differentiated twice: train.compile is measured with the penalty by finite
differences and without path lengths, beside the same case without it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from genus.objectives.augmentation.config import AugmentConfig
from genus.parallel import Precision
from genus.recipe_command import import_recipe

sys.path.insert(0, str(Path(__file__).parents[1]))
from gan_training import Training, parameters

ROOT = Path(__file__).parents[2]
GOAL_SECONDS = 7.0
Row = dict[str, object]


@dataclass(frozen=True)
class Case:
    """What is different from the preset."""

    precision: Precision
    augment: bool = False
    single: bool = False
    """No second derivatives: finite differences, and no path lengths."""
    compile: bool = False

    def __str__(self) -> str:
        parts: list[str] = [self.precision]
        parts += ["ADA"] * self.augment + ["finite differences, no path lengths"] * self.single
        return ", ".join([*parts, *["compiled"] * self.compile])

    def changed(self, preset: Any) -> Any:
        """The preset with these differences."""
        augment = AugmentConfig(kind="ada", p=0.5) if self.augment else AugmentConfig()
        objective = replace(preset.objective, augment=augment)
        if self.single:
            objective = replace(objective, penalty="finite-difference", path_length=0.0, mixing=0.0)
        train = replace(
            preset.train, precision=self.precision, strategy="ddp", compile=self.compile
        )
        return replace(preset, objective=objective, train=train)


CASES = {
    "fp32": Case("fp32"),
    "bf16": Case("bf16"),
    "fp32-ada": Case("fp32", augment=True),
    "bf16-ada": Case("bf16", augment=True),
    "single": Case("bf16", single=True),
    "compiled": Case("bf16", single=True, compile=True),
}


@contextmanager
def world_of_its_own() -> Iterator[None]:
    """Accelerate knows one precision a process, and forgets it here."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def seconds(device: torch.device) -> float:
    """Of the wall clock, when the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def warmed_up(training: Training, micro: int, group: int) -> None:
    """A whole cycle, with the largest micro-batch up to ``micro`` that has room."""
    while True:
        training.micro = micro
        try:
            return training.cycle()
        except torch.OutOfMemoryError:
            if micro // 2 < group:
                raise SystemExit("the device has no room for one group of samples") from None
        micro //= 2
        gc.collect()
        torch.cuda.empty_cache()


def timed(training: Training, rounds: int) -> tuple[list[float], dict[str, float], int]:
    """Seconds of each cycle, milliseconds of a step of each phase alone, bytes at the peak."""
    device, cuda = training.device, training.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    cycles = []
    for _ in range(rounds):
        start = seconds(device)
        training.cycle()
        cycles.append(seconds(device) - start)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    phases = {}
    for phase in training.objective.phases:
        found = []
        for _ in range(rounds):
            start = seconds(device)
            training.step((phase.name,))
            found.append(1000 * (seconds(device) - start))
        phases[phase.name] = round(statistics.median(found), 2)
    return cycles, phases, peak


def profiled(training: Training) -> str:
    """torch.profiler's table of a cycle: which operations the time goes to."""
    activities = [ProfilerActivity.CPU]
    if training.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        training.cycle()
    key = f"self_{training.device.type}_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=70))


def measure(
    case: Case, preset: Any, shape: tuple[int, ...], rounds: int, micro: int, profiles: bool
) -> Row:
    """One case's row."""
    cfg = case.changed(preset)
    torch.manual_seed(0)
    with world_of_its_own():
        networks = cfg.network.build(shape, 0)
        counts = {name: parameters(network) for name, network in networks.items()}
        training = Training(networks, cfg.objective, cfg.train, shape)
        warmed_up(training, min(micro or cfg.train.batch, cfg.train.batch), cfg.network.group)
        cycles, phases, peak = timed(training, rounds)
        if profiles:
            print(profiled(training), file=sys.stderr)
        images = training.cycle_steps * cfg.train.batch
        per_kimg = [1000 * cycle / images for cycle in cycles]
        found = statistics.median(per_kimg)
        return {
            "row": f"StyleGAN2 {shape[1]} px training, {case}",
            "ours": round(found, 3),
            "peer": GOAL_SECONDS,
            "peer_name": "goal on an H100",
            "ratio": round(GOAL_SECONDS / found, 3),
            "goal": 1.0,
            "unit": "s a thousand images",
            "lower_is_better": True,
            "extremes": [round(min(per_kimg), 3), round(max(per_kimg), 3)],
            "phases_ms": phases,
            "batch": cfg.train.batch,
            "micro": training.micro,
            "memory_gib": round(peak / 2**30, 2),
            "parameters": counts,
            "device": torch.cuda.get_device_name() if peak else "cpu",
            "torch": torch.__version__,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer cycles, nothing compiled")
    parser.add_argument("--only", choices=CASES, action="append", help="default: all")
    parser.add_argument("--micro", type=int, default=0, help="the largest micro-batch to try")
    parser.add_argument("--profile", action="store_true", help="operations of a cycle, to stderr")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to check the program")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here (--tiny checks the program)")
    presets = import_recipe(ROOT / "recipes" / "gan.py").PRESETS
    preset = presets["tiny" if args.tiny else "stylegan2-ffhq256"]
    shape = (1, 16, 16) if args.tiny else (3, 256, 256)
    less = args.quick or args.tiny
    for name in args.only or [name for name in CASES if name != "compiled" or not less]:
        rounds = 2 if less else 5
        row = measure(CASES[name], preset, shape, rounds, args.micro, args.profile)
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"{row['row']}: {row['ours']} s/kimg {row['extremes']}, goal {GOAL_SECONDS}; "
            f"phases {row['phases_ms']} ms; micro-batch {row['micro']} of {row['batch']}, "
            f"{row['memory_gib']} GiB; {row['device']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
