"""genus plan on a GPU: a large preset of each recipe, against what torch and the clock say."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from genus.errors import ConfigError
from genus.plan.estimate import traces
from genus.plan.job import Described, Job, read_job
from genus.plan.machines import GPUS
from genus.plan.rows import batches, first_rows
from genus.plan.speed import Trial, roofline
from launching import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CASES = {
    "autoregressive": ("gpt2-350m", Described(vocabulary=50304), 8),
    "diffusion": ("dit-xl2-imagenet256", Described(image="4x32x32", classes=1000), 16),
    "flow": ("glow-cifar10", Described(image="3x32x32"), 32),
    "seq2seq": ("verses", Described(), 64),
}


def gpu_job(recipe: str) -> tuple[Job, int]:
    preset, described, rows = CASES[recipe]
    words = ["--preset", preset, "train.precision=bf16", f"train.micro={rows}"]
    words.append(f"train.batch={rows}")
    try:
        return read_job(ROOT / "recipes" / f"{recipe}.py", words, described=described), rows
    except ConfigError as error:
        pytest.skip(f"data are not here: {error}")


def measured(job: Job, rows: int, steps: int = 12) -> tuple[int, float]:
    """Peak bytes of the allocator, and median seconds of a step, after three to warm up."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        trial: Any = Trial(job)
    source, taken = batches(job, rows), []
    for _ in range(steps):
        batch = next(source)
        fields = {name: value.cuda() for name, value in batch.fields.items()}
        draws = type(batch.draws).of(batch.draws.seeds, batch.draws.group_size, "cuda")
        micro = first_rows(type(batch)(fields, batch.ids, batch.position, draws), rows)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for phase in trial.objective.phases:
            with torch.autocast("cuda", torch.bfloat16):
                loss, _ = phase.loss(trial.networks, micro.scoped(phase.name))
            loss.backward()
            trial._update(phase.trains)
        trial.averages.update(100_000, rows)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return torch.cuda.max_memory_allocated(), statistics.median(taken[3:])


@pytest.mark.parametrize("recipe", CASES)
def test_memory_and_time_of_a_step(recipe: str) -> None:
    assert sorted(CASES) == sorted(path.stem for path in Path(ROOT / "recipes").glob("*.py"))
    job, rows = gpu_job(recipe)
    name = torch.cuda.get_device_name()
    gpu = next(gpu for gpu in GPUS.values() if gpu.name.split()[0] in name)
    traced = max(traces(job, rows, gpu=True), key=lambda t: t.peak)
    peak, seconds = measured(job, rows)
    predicted = roofline(traced.forward, gpu) + roofline(traced.update, gpu)
    print(f"{recipe}: {traced.peak / peak:.3f} of memory, {predicted / seconds:.3f} of time")
    assert traced.peak == pytest.approx(peak, rel=0.10)
    assert predicted == pytest.approx(seconds, rel=0.20)
