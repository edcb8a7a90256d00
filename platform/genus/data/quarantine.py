"""Bad samples: which are known, what stands in for them, and how many a run puts up with.

A sample that can't be read (a missing or damaged shard, bytes that are no image) is replaced by
another of its lane, chosen by the order alone. As the choice follows from the set of bad samples,
and all ranks agree on that set and keep it in the checkpoint, a resumed or re-scaled run goes on
with the same samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.order import Ids, Lanes
from genus.data.source import Source
from genus.data.store import UnreadableError
from genus.errors import AgreedDataError, DataError

Entry = dict[str, int | str]
"""A line of the ledger: shard and sample (none: all of the shard), how many, why, and the run's
position when it was met."""


class Quarantine:
    """The bad samples that this rank knows of."""

    def __init__(self, source: Source, budget: int) -> None:
        """``budget``: samples that may be bad in a run. DataError where it is negative."""
        if budget < 0:
            raise DataError(f"data.bad_samples={budget}: take 0 or more")
        self.budget = budget
        self._source = source
        self._ends = np.cumsum(source.sizes)
        self._samples: set[int] = set()
        self._shards: set[int] = set()
        self._fresh: list[Entry] = []

    @property
    def has_news(self) -> bool:
        """Whether this rank found something that the others don't know yet."""
        return bool(self._fresh)

    @property
    def exhausted(self) -> bool:
        """Whether more samples are bad than the budget allows."""
        return self.count > self.budget

    @property
    def count(self) -> int:
        """Bad samples: single ones, and all of each unreadable shard."""
        return len(self._samples) + sum(int(self._source.sizes[s]) for s in self._shards)

    def find(self, sample: int, error: DataError, position: int) -> Entry | None:
        """Take in a fault; returns the ledger's entry, None where it was known already."""
        if self.covers(sample):
            return None
        shard = self._shard(sample)
        if isinstance(error, UnreadableError):
            entry: Entry = {"shard": shard, "count": int(self._source.sizes[shard])}
        else:
            entry = {"shard": shard, "sample": sample, "count": 1}
        entry |= {"samples": position, "why": str(error)}
        self._take(entry)
        self._fresh.append(entry)
        return entry

    def settle(self, gather: Callable[[Any], list[Any]]) -> list[Entry]:
        """Exchange what is new; a collective call. Returns what all ranks found, in one order.

        ``gather`` gives every rank's value to all. AgreedDataError on all ranks if it is too much.
        """
        news: list[Entry] = []
        for entry in (entry for rank in gather(self._fresh) for entry in rank):
            same = any(_key(entry) == _key(other) for other in news)
            if not same:
                news.append(entry)
        for entry in news:
            self._take(entry)
        self._fresh = []
        if self.exhausted:
            raise AgreedDataError(self._complaint(news))
        return news

    def check(self) -> None:
        """DataError where this rank knows of more bad samples than the budget allows."""
        if self.exhausted:
            raise DataError(self._complaint(self._fresh))

    def _complaint(self, found: list[Entry]) -> str:
        shown = "\n".join(f"  {entry['why']}" for entry in found[:5])
        more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
        return (
            f"{self.count} samples can't be read, data.bad_samples allows {self.budget}:\n{shown}"
            f"{more}\nMend the data, or let others stand in for bad samples by data.bad_samples=N"
        )

    # ---- substitution ----------------------------------------------------------------------------

    def covers(self, sample: int) -> bool:
        """Whether a sample is known to be bad."""
        if sample in self._samples:
            return True
        return bool(self._shards) and self._shard(sample) in self._shards

    def replaced(self, ids: Ids, order: Lanes, where: Callable[[int], tuple[int, int]]) -> Ids:
        """``ids`` (B,) with known bad samples replaced; ``where(row)``: its lane and position."""
        if not (self._samples or self._shards):
            return ids
        bad = self._mask(ids)
        if not bad.any():
            return ids
        ids = ids.copy()
        for row in np.flatnonzero(bad).tolist():
            lane, position = where(row)
            found = next((i for i in order.alternatives(lane, position) if not self.covers(i)), -1)
            if found < 0:
                raise DataError(f"no sample of lane {lane} can be read: mend the data")
            ids[row] = found
        return ids

    def _mask(self, ids: Ids) -> NDArray[np.bool_]:
        bad = np.zeros(len(ids), bool)
        if self._samples:
            bad |= np.isin(ids, list(self._samples))
        if self._shards:
            bad |= np.isin(self.shards_of(ids), list(self._shards))
        return bad

    def shards_of(self, ids: Ids) -> Ids:
        """(n,) number of the shard of each sample (n,)."""
        return np.searchsorted(self._ends, ids, side="right")

    def _shard(self, sample: int) -> int:
        return int(np.searchsorted(self._ends, sample, side="right"))

    def _take(self, entry: Mapping[str, int | str]) -> None:
        shard = int(entry["shard"])
        if "sample" not in entry:
            self._samples = {s for s in self._samples if self._shard(s) != shard}
            self._shards.add(shard)
        elif shard not in self._shards:
            self._samples.add(int(entry["sample"]))

    # ---- state -----------------------------------------------------------------------------------

    def to_text(self) -> str:
        """For the checkpoint; the same on all ranks once settled."""
        return json.dumps({"samples": sorted(self._samples), "shards": sorted(self._shards)})

    def from_text(self, text: str) -> None:
        """The inverse of ``to_text``."""
        state = json.loads(text)
        self._samples, self._shards = set(state["samples"]), set(state["shards"])
        self._fresh = []


def _key(entry: Mapping[str, int | str]) -> tuple[Any, Any]:
    return entry.get("shard"), entry.get("sample")
