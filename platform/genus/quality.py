"""Quality of samples while a model trains, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig
from genus.errors import ConfigError, GenusError
from genus.evaluate.frechet import KID_SUBSET_SIZE
from genus.evaluate.kept import keep_in_training, parameters_of
from genus.evaluate.passport import Figure, Passport
from genus.evaluate.real_data import READ, RealData
from genus.loop import TrainConfig
from genus.objectives.phase import CanSample, SampleOptions
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.run import Run
from genus.sampling import grid_labels, sample_batches
from genus.validation import held_out

IMAGES = 2000
"""Where train.evaluate_samples leaves it open."""


class Quality:
    """An evaluation for the loop: of data with known modes how many the samples cover, else the
    distances of image samples to real ones; the same samples every time, by the averaged weights.

    All ranks draw equal shares, and the first one measures while the others wait. Metrics have the
    keys "quality/modes covered", "quality/FD-EffLite0"; the figures with their passport lie in
    RUN/evaluations.
    """

    name = "quality"

    def __init__(
        self,
        run: Run,
        networks: Mapping[str, nn.Module],
        objective: CanSample,
        train: TrainConfig,
        ema: PowerEMAConfig | PlainEMAConfig,
        *,
        data: DataConfig,
        info: DataInfo,
    ) -> None:
        """Never due where train.evaluate_every is 0. A classifier that modes need is trained now.
        ConfigError, on all ranks, where the data have no such figures or too few samples."""
        self.every = train.evaluate_every
        self._run, self._networks, self._objective = run, networks, objective
        if not self.every:
            return
        self._began, self._spent = time.monotonic(), 0.0
        self._ema, self._classes = ema.labels()[0], info.classes
        self._batch = 100 if info.resolution else 1000
        self._parameters = parameters_of(networks)  # now: strategies may leave shards of them
        self._plan = objective.plan(SampleOptions())  # a bad setting is found now
        data = held_out(data) or replace(data, also=(), weights=(), flip=False, bucket_step=0)
        size = info.resolution or data.size
        self._real = RealData(replace(data, size=size, workers=0), run.world.device)
        if not info.resolution and not self._real.has_modes:
            raise ConfigError(
                f"train.evaluate_every={self.every}: only images and data with known modes have "
                f"figures of samples, and {data.url} is neither: set it to 0"
            )
        usual = self._usual()
        self._count = train.evaluate_samples or usual
        least = 1 if self._real.has_modes else KID_SUBSET_SIZE
        if min(self._count, self._real.total) < least:
            raise ConfigError(
                f"train.evaluate_samples={self._count}: these figures need at least {least} "
                f"samples and as many real ones, and {data.url} has {self._real.total:,}"
            )
        self._spent = time.monotonic() - self._began

    def _usual(self) -> int:
        """How many samples. The first rank may have to train a classifier that will count them,
        and the others wait."""
        answer: int | str = IMAGES
        if self._run.world.is_first and self._real.has_modes:
            try:
                answer = self._real.counter.samples
            except Exception as error:  # of whatever kind: the others wait
                answer = _told(error)
        answer = self._run.world.broadcast(answer)
        if isinstance(answer, str):
            raise ConfigError(f"train.evaluate_every={self.every}: {answer}")
        return answer

    def run(self, samples: int) -> Mapping[str, Any]:
        """Figures, their passport's file and the cost; or why there are no figures."""
        world, start = self._run.world, time.monotonic()
        drawn = self._drawn()
        drawing = time.monotonic() - start
        found: dict[str, Any] = {}
        if drawn is not None:
            try:
                figures = self._figures(drawn, samples)
                found["passport"] = keep_in_training(
                    figures, self._run.folder, samples, self._objective, self._parameters
                )
                found |= {name: figure.value for name, figure in figures.items()}
            except Exception as error:  # no reason to end a run, and the others wait
                found = {"error": _told(error)}
        found = world.broadcast(found)  # nobody trains on before it is measured
        now = time.monotonic()
        self._spent += now - start
        cost = {
            "seconds_drawing": drawing,
            "seconds_measuring": now - start - drawing,
            "share": self._spent / (now - self._began),
        }
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        row = {f"quality/{name}": value for name, value in {**numbers, **cost}.items()}
        self._run.metrics.write({"samples": samples, **row})
        told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._run.say(
            f"{samples:>10,}  {told or 'no figures of samples: ' + found['error']}  (drawn in "
            f"{drawing:.1f} s, measured in {cost['seconds_measuring']:.1f} s: "
            f"{100 * cost['share']:.1f} % of the time so far)"
        )
        return {**found, **cost}

    def _drawn(self) -> Tensor | None:
        """All samples in order, on the first rank; None on the others."""
        world = self._run.world
        each = -(-self._count // world.size)  # the same on all ranks; what is too many is dropped
        mine = range(world.rank, each * world.size, world.size)
        labels = grid_labels(each * world.size, self._classes)
        parts = sample_batches(
            self._objective,
            self._networks,
            mine,
            [labels[i] for i in mine] if labels is not None else None,
            seed=self._run.seed,
            device=world.device,
            batch=self._batch,
        )
        rows = world.gather_rows(torch.cat([part.cpu() for part in parts]))
        if rows is None:
            return None
        ordered = rows.reshape(world.size, each, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
        return ordered[: self._count]

    def _figures(self, drawn: Tensor, samples: int) -> dict[str, Figure]:
        passport = Passport(
            progress=samples,
            ema=self._ema,
            sampler=self._plan.sampler,
            nfe=self._plan.nfe,
            guidance=self._plan.guidance,
            seeds=(self._run.seed,),
            labels="all classes in turn" if self._classes else None,
            **self._real.known,
        )
        parts = torch.split(drawn, READ)
        if self._real.has_modes:
            return self._real.modes(parts, passport)
        return self._real.distances(
            parts, passport, self._count, min(self._count, self._real.total)
        )


def _told(error: Exception) -> str:
    """Our own errors are whole sentences; the message of any other says little without its type."""
    return str(error) if isinstance(error, GenusError) else f"{type(error).__name__}: {error}"
