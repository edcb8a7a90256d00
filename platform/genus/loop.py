"""train(): the one loop of the repository, for every family.

For each phase that is due: for each micro-batch, only the phase's networks are unfrozen; backward;
clip; step. Then the objective's own update and the averages. Progress is counted in samples.
A non-finite loss or gradient is found on the device and agreed by all ranks before the update; that
update is skipped, counted, and the samples' ids are kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genus.checkpoint import Checkpoints
from genus.data.batch import Batch
from genus.data.stream import Stream
from genus.draws import seed_of
from genus.errors import ConfigError, TrainingError
from genus.meter import Meter
from genus.objectives.phase import Objective, Phase
from genus.optim.build import AdamWConfig, MuonConfig, set_learning_rates
from genus.optim.ema import EMA, PlainEMAConfig, PowerEMAConfig
from genus.optim.schedule import decayed, factor
from genus.parallel import Precision
from genus.run import Run
from genus.state import State, Stateful, scalar
from genus.strategies.choice import Strategy
from genus.strategies.making import spread
from genus.strategies.spread import Spread


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch, numerics and cadences of a run; cadences are in samples, 0 is never."""

    samples: int = 1_000_000
    """Length of the run, samples."""
    batch: int = 64
    """Global batch of one step, samples."""
    micro: int = 0
    """Samples of one forward and backward on one device (0: the whole share). Changes no result
    beyond rounding, unless the network has dropout, whose masks are drawn a micro-batch."""
    precision: Precision = "auto"
    """auto: what the launcher says (accelerate's --mixed_precision), else fp32."""
    strategy: Strategy = "auto"
    """How the run lies on the ranks; auto: what the launcher says (FSDP2 or DeepSpeed in
    accelerate's file), else ddp. docs/launch.md"""
    clip: float = 1.0
    """Largest gradient norm (0: no clipping)."""
    compile: bool = False
    """torch.compile the networks."""
    recompute: bool = False
    """Activation checkpointing: each block of a network keeps its inputs only and is worked out
    again for the backward pass. Changes no result."""
    minutes: float = 0.0
    """End cleanly after this much wall time, minutes (0: no limit)."""
    status_every: int = 10_000
    """Metrics row and log line."""
    sample_every: int = 0
    """Sample grid in the run folder."""
    validate_every: int = 0
    """Likelihood of held-out data, of families that have one."""
    evaluate_every: int = 0
    """FD and KID of samples; of data with known modes how many of them are covered. Its cost is in
    the log."""
    evaluate_samples: int = 0
    """Samples of each such evaluation (0: as many as ``genus evaluate`` draws)."""
    checkpoint_every: int = 100_000
    """Checkpoint; one more is written at the end and on SIGTERM or SIGUSR1."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this are kept for good."""
    bad_steps: int = 20
    """Stop after so many non-finite steps in a row."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1 or self.micro < 0:
            raise ConfigError(
                f"train.samples={self.samples}, batch={self.batch}, micro={self.micro}: samples, "
                "batch must be positive and micro not negative"
            )


class Evaluation(Protocol):
    """Something done by all ranks with the averaged weights; its result becomes an event."""

    name: str
    every: int
    """Samples between two of them; 0 is never."""

    def run(self, samples: int) -> Mapping[str, Any]:
        """Called at ``samples`` of progress, with the averages in the networks."""


@dataclass
class Progress:
    """How far the run is, and how many updates in a row were not finite."""

    samples: int = 0
    step: int = 0
    skipped: int = 0
    streak: int = 0

    def state_dict(self) -> State:
        return {"step": self.step, "skipped": self.skipped, "streak": self.streak}

    def load_state_dict(self, state: State) -> None:
        self.step, self.skipped, self.streak = (
            int(scalar(state[key])) for key in ("step", "skipped", "streak")
        )


def train(
    run: Run,
    networks: Mapping[str, nn.Module],
    objective: Objective,
    stream: Stream,
    config: TrainConfig,
    optim: AdamWConfig | MuonConfig,
    ema: PowerEMAConfig | PlainEMAConfig,
    evaluations: Sequence[Evaluation] = (),
    flops_per_sample: float = 0.0,
) -> int:
    """Train to ``config.samples`` or a clean early end; resumes by itself. Returns the progress."""
    world, began = run.world, time.monotonic()
    mine = spread(world, networks, objective.phases, optim, config)
    averages = EMA(ema, mine.layout)
    progress, meter = Progress(), Meter(world, flops_per_sample)
    states: dict[str, Stateful] = {**mine.states, "ema": averages, "objective": objective}
    states |= {"stream": stream, "progress": progress}
    checkpoints = Checkpoints(
        run.folder / "checkpoints", world, config.keep_last, config.keep_every, run.owner
    )
    newest = checkpoints.newest()
    if newest is not None:
        progress.samples = checkpoints.load(states, newest)
        run.event("resumed", samples=progress.samples, checkpoint=newest.name)
        run.say(f"resumed from {newest.name}")
    run.resumed(progress.samples)
    watch = _Watch(run, config, progress)
    stream.ledger = run.bad_sample
    batches, why = iter(stream), "finished"
    meter.restart()

    while progress.samples < config.samples:
        with meter.waiting():
            batch = next(batches)
        when = optim.schedule, progress.samples, config.samples
        set_learning_rates(mine.optimizers, factor(*when), decayed(*when))
        for phase in objective.phases:
            if progress.step % phase.every == 0:
                watch.saw(_update(run, mine, phase, batch, config, meter), batch)
        progress.samples, progress.step = stream.position, progress.step + 1
        objective.after_step(mine.prepared, progress.samples)
        averages.update(progress.samples, config.batch)
        meter.step()

        due = _Due(progress.samples, config.batch, config.samples)
        if due(config.status_every):
            watch.check()
            row = meter.report(config.batch)
            run.metrics.write({"samples": progress.samples, "step": progress.step, **row})
            run.progress(progress.samples, config.samples, _status(row))
        if ema.snapshot_every and due(ema.snapshot_every):
            averages.snapshot(run.folder / "snapshots", progress.samples, writes=world.is_first)
        for evaluation in evaluations:
            if due(evaluation.every):
                with averages.applied():
                    figures = evaluation.run(progress.samples)
                run.event(evaluation.name, samples=progress.samples, **figures)
                meter.restart()
        late = config.minutes > 0 and time.monotonic() - began > 60 * config.minutes
        stopped, late, broken, found = world.agree(
            [run.stop_signal is not None, late, checkpoints.failed, stream.quarantine.has_news]
        )
        if broken:
            checkpoints.wait()  # raises where the save failed
            raise TrainingError("another rank could not write its checkpoint; see its message")
        if found:
            _settle(run, stream)
        if stopped or late:
            why = "time is up" if late else f"stopped by {run.stop_signal or 'a signal'}"
            break
        if config.checkpoint_every and due(config.checkpoint_every):
            watch.check()
            _settle(run, stream)
            checkpoints.save(states, progress.samples)
            run.event("checkpoint", samples=progress.samples)

    checkpoints.wait()
    watch.check()
    _settle(run, stream)
    checkpoints.save(states, progress.samples)
    checkpoints.wait()
    world.barrier()
    run.finish(why, progress.samples)
    run.say(f"{why} at {progress.samples:,} samples; checkpoint in {run.folder / 'checkpoints'}")
    return progress.samples


def _settle(run: Run, stream: Stream) -> None:
    """All ranks agree on the bad samples, or end together where they are too many."""
    news = stream.settle(run.world.gather)
    if news:
        count, budget = stream.quarantine.count, stream.quarantine.budget
        run.event("bad samples", samples=stream.position, new=len(news), total=count)
        run.say(f"{count} of at most {budget} bad samples, others stand in: see bad-samples/")


def _update(
    run: Run, mine: Spread, phase: Phase, batch: Batch, config: TrainConfig, meter: Meter
) -> Tensor:
    """One gradient step of one phase; returns a device flag, 1 where it was skipped."""
    world = run.world
    micros = list(batch.scoped(phase.name).micro_batches(config.micro))
    bad = torch.zeros((), device=world.device)
    for i, micro in enumerate(micros):
        # Dropout draws from the default generator, which is set by rule: nothing to save.
        _seed_default(seed_of(run.seed, batch.position, phase.name, world.rank, i), world.device)
        weight = len(micro) / len(batch)
        with mine.only(phase.trains, last=i == len(micros) - 1):
            loss, metrics = mine.loss(phase, micro)
            mine.backward(loss * weight, phase.trains)
        bad = torch.maximum(bad, (~torch.isfinite(loss.detach())).float())
        meter.add({f"{phase.name}/{key}": value for key, value in metrics.items()}, weight)
    norm, bad = mine.step(phase.trains, bad)
    meter.add({f"{phase.name}/grad_norm": norm})
    return bad


def _seed_default(seed: int, device: torch.device) -> None:
    # torch.manual_seed asks every kind of accelerator, which costs a millisecond a step
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class _Watch:
    """Remembers which steps were not finite without reading the device until a report is due."""

    def __init__(self, run: Run, config: TrainConfig, progress: Progress) -> None:
        self.run, self.config, self.progress = run, config, progress
        self._recent: list[tuple[Tensor, Batch]] = []

    def saw(self, bad: Tensor, batch: Batch) -> None:
        self._recent.append((bad, Batch({}, batch.ids, batch.position, batch.draws)))

    def check(self) -> None:
        """Count the steps with a skipped update since the last check; TrainingError after too many
        in a row."""
        if not self._recent:
            return
        flags = torch.stack([bad for bad, _ in self._recent]).tolist()
        steps: dict[int, tuple[bool, Batch]] = {}
        for flag, (_, batch) in zip(flags, self._recent, strict=True):
            any_phase = bool(flag) or (batch.position in steps and steps[batch.position][0])
            steps[batch.position] = any_phase, batch
        for position, (bad, batch) in steps.items():
            self.progress.streak = self.progress.streak + 1 if bad else 0
            if bad:
                self.progress.skipped += 1
                ids = batch.ids.tolist()
                self.run.metrics.write({"samples": position, "skipped_ids": ids})
                self.run.event("skipped", why="not finite", samples=position)
        self._recent.clear()
        if self.progress.streak >= self.config.bad_steps:
            raise TrainingError(
                f"the updates of {self.progress.streak} steps in a row were not finite, up to "
                f"{self.progress.samples} samples. None was applied, and the newest checkpoint is "
                "sound. Look at the ids in metrics/rank-*.jsonl; try a lower optim.lr, a longer "
                "optim.schedule.warmup or train.precision=fp32"
            )


@dataclass(frozen=True)
class _Due:
    samples: int
    batch: int
    total: int

    def __call__(self, every: int) -> bool:
        """Whether this step crossed a multiple of ``every``, or was the last."""
        if not every:
            return False
        crossed = self.samples // every > (self.samples - self.batch) // every
        return crossed or self.samples >= self.total


def _status(row: Mapping[str, float]) -> str:
    losses = [f"{key} {value:.4f}" for key, value in row.items() if key.endswith("/loss")]
    speed = f"{row['samples_per_second']:.0f} samples/s"
    wait = f"data wait {100 * row['data_wait_share']:.1f} %"
    return "  ".join([*losses, speed, wait])
