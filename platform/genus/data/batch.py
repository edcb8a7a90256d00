"""One step's data on one rank, with the random numbers that belong to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from genus.draws import Draws


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch, or a micro-batch of it.

    ``fields`` maps a field's name to a tensor with one row a sample: ``image`` (B, C, H, W) uint8,
    ``label`` (B,) int64, and whatever else the shards hold. ``ids`` (B,) int64 are the samples'
    numbers in the data set. ``position`` counts the samples that the run had consumed before this
    global batch.
    """

    fields: Mapping[str, Tensor]
    ids: Tensor
    position: int
    draws: Draws

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.fields[name]
        except KeyError:
            known = ", ".join(sorted(self.fields)) or "none"
            raise KeyError(f"the data has no field '{name}' (its fields: {known})") from None

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __len__(self) -> int:
        return len(self.ids)

    def micro_batches(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of ``size`` rows; 0 or anything beyond the batch means one part."""
        size = size if 0 < size < len(self) else len(self)
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield replace(
                self,
                fields={name: value[rows] for name, value in self.fields.items()},
                ids=self.ids[rows],
                draws=self.draws.window(rows.start, rows.stop),
            )

    def scoped(self, name: str) -> Batch:
        """The same samples with independent random numbers."""
        return replace(self, draws=self.draws.scoped(name))
