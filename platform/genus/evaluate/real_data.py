"""The real data that a model's samples are measured against, and the measuring."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genus.data import datasets
from genus.data.manifest import Manifest
from genus.data.stream import DataConfig, iterate_once
from genus.errors import EvaluationError
from genus.evaluate.features import Extractor, efficientnet_lite0
from genus.evaluate.measure import sample_quality
from genus.evaluate.modes import ModeCounter, ModeCounts, mode_figures
from genus.evaluate.passport import Figure, Passport
from genus.evaluate.stacked_modes import mode_counter

READ = 500
"""Samples at once."""


class RealData:
    """A data set as a model reads it, and what tells its samples from others'."""

    def __init__(self, data: DataConfig, device: torch.device | str) -> None:
        """``data`` at the model's size, without flips."""
        self._data, self._device = data, device
        self._manifest = Manifest.load(datasets.resolve(data.url))
        # Padding that all images share would shrink every distance: it is cut before the features.
        is_padded = bool(self._manifest.channels) and data.fit == "pad"
        self._border = max(0, (data.size - self._manifest.height) // 2) if is_padded else 0

    @property
    def known(self) -> dict[str, Any]:
        """What a passport says of it."""
        fingerprint = self._manifest.fingerprint()
        return {"reference": self._data.url, "reference_fingerprint": fingerprint}

    @property
    def total(self) -> int:
        """Samples that there are."""
        return self._manifest.total

    @property
    def has_modes(self) -> bool:
        return bool(self._manifest.modes)

    @cached_property
    def counter(self) -> ModeCounter:
        """Of its modes; may train a classifier at the first time."""
        return mode_counter(self._manifest.modes, border=self._border, device=self._device)

    @cached_property
    def extractor(self) -> Extractor:
        return efficientnet_lite0(border=self._border, device=self._device)

    def distances(
        self, drawn: Iterable[Tensor], passport: Passport, count: int, reference_count: int
    ) -> dict[str, Figure]:
        """FD, KID and the others of ``count`` images; the real ones' features are kept."""
        return sample_quality(
            drawn,
            (batch["image"] for batch in iterate_once(self._data, READ)),
            self.extractor,
            passport,
            count=count,
            reference_count=reference_count,
            cache=datasets.data_root() / "features",
        )

    def modes(self, drawn: Iterable[Tensor], passport: Passport) -> dict[str, Figure]:
        """Modes covered and their KL, of all that is drawn."""
        return mode_figures(self._count(drawn), self.counter, passport)

    def own_modes(self, count: int) -> dict[str, Figure]:
        """The same of the first ``count`` real samples: the best that a model can have."""
        field = "image" if self._manifest.channels else "vector"
        batches = iterate_once(self._data, READ, limit=min(count, self.total))
        found = self._count(batch[field] for batch in batches)
        passport = Passport(**self.known, sampler="the real data themselves")
        return mode_figures(found, self.counter, passport, of="of the data")

    def _count(self, drawn: Iterable[Tensor]) -> ModeCounts:
        found: ModeCounts | None = None
        for batch in drawn:
            more = self.counter(batch)
            found = more if found is None else found + more
        if found is None:
            raise EvaluationError("modes of no samples: ask for at least one")
        return found
