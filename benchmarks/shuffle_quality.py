"""How well Genus's order mixes data whose classes are stored in runs, beside a full permutation.

    python benchmarks/shuffle_quality.py [--json] [--quick] [--shards 60]

The worst case for any order by shards: as Fashion-MNIST sorted by class, 60,000 samples, 6,000 of
each of ten classes, in shards of 1,000, so that every shard holds a single class. Only ids are
served, no images. An epoch in batches of 64 is judged by

- chi-square of class counts against equal shares, for a batch and for 16 batches together: chance
  gives 9, and less means more even than chance (lanes spread a batch over the whole data set);
- serial correlation: of the classes' indicators at lags 1..64 in the global sequence, as the root
  mean square over lags and at lag 1; chance gives 1/sqrt(9 N) = 0.0014 and 0. A sample's place
  within its batch counts here, though it means nothing to training: with as many lanes as a batch
  has samples, lag 64 is the same lane again, which is still in the same shards;
- the mean length of runs of one class; chance gives 10/9;
- Spearman's correlation between stored and served rank, as the root mean square over seeds; chance
  gives 1/sqrt(N) = 0.0041.

webdataset's order is made by its own shuffle filter over shuffled shards, with buffers of 1,000 and
10,000 samples. Genus's are windows of 1, 4, 16 shards, the default, and the whole epoch, in the
lanes that a batch of 64 gets by default and in a single lane, where the window alone has to mix.
Figures are means over seeds, with the standard deviation over seeds in brackets.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from genus.data.order import Ids, Order, lanes_for
from genus.data.stream import DataConfig

CLASSES, SHARD, BATCH, LAGS, TOGETHER = 10, 1000, 64, 64, 16
GOAL = 1.05
"""At most this much above a full permutation."""

Serve = Callable[[int], Ids]
"""Seed -> (N,) the ids of an epoch as they are served."""
METRICS = (
    "chi-square",
    f"chi-square of {TOGETHER}",
    "serial correlation",
    "lag 1",
    "run length",
    "rank correlation",
)


def genus(seed: int, *, shards: int, lanes: int, window: int) -> Ids:
    """An epoch, batch after batch; the last samples of lanes, too few for a batch, are left out."""
    order = Order(np.full(shards, SHARD), lanes=lanes, window=window, seed=seed)
    share = BATCH // lanes
    steps = order.samples // lanes // share
    rows = [order.ids(lane, 0, steps * share).reshape(steps, share) for lane in range(lanes)]
    return np.stack(rows, axis=1).ravel()


def webdataset(seed: int, *, shards: int, buffer: int) -> Ids:
    """Shards shuffled, read one after the other through the library's own buffer."""
    from webdataset.filters import shuffle

    row = list(range(shards))
    random.Random(seed).shuffle(row)
    stored = (shard * SHARD + i for shard in row for i in range(SHARD))
    served: Iterator[int] = shuffle(buffer, seed=seed)(stored)
    return np.fromiter(served, np.int64)


def permuted(seed: int, *, shards: int) -> Ids:
    """What a shuffle of everything in memory gives."""
    return np.random.default_rng(seed).permutation(shards * SHARD)


def orders(shards: int) -> dict[str, Serve]:
    """Name -> order; the first is Genus as it is by default, the last the full permutation."""
    default, lanes = DataConfig().window, lanes_for(BATCH)
    ours = partial(genus, shards=shards)
    found: dict[str, Serve] = {
        f"genus, default: {lanes} lanes, window {default}": partial(
            ours, lanes=lanes, window=default
        )
    }
    windows = {f"window {n} shard{'s'[: n > 1]}": n * SHARD for n in (1, 4, 16)}
    windows |= {f"window {default} (default)": default, "window of the epoch": shards * SHARD}
    for name, window in windows.items():
        if window * lanes < shards * SHARD:  # else a lane is one window, as by default
            found[f"genus, {lanes} lanes, {name}"] = partial(ours, lanes=lanes, window=window)
    for name, window in windows.items():
        found[f"genus, 1 lane, {name}"] = partial(ours, lanes=1, window=window)
    for buffer in (1000, 10_000):
        found[f"webdataset, buffer {buffer}"] = partial(webdataset, shards=shards, buffer=buffer)
    return {**found, "full permutation": partial(permuted, shards=shards)}


def quality(ids: Ids, samples: int) -> dict[str, float]:
    """All metrics of one served epoch of ``samples``."""
    assert len(np.unique(ids)) == len(ids), "a sample came twice"
    assert len(ids) > samples - BATCH, f"only {len(ids)} samples came"
    labels = ids * CLASSES // samples
    correlations = np.array([correlation(labels, lag) for lag in range(1, LAGS + 1)])
    values = (
        chi_square(labels, BATCH),
        chi_square(labels, BATCH * TOGETHER),
        np.sqrt((correlations**2).mean()),
        correlations[0],
        len(labels) / (1 + (labels[1:] != labels[:-1]).sum()),
        spearman(ids),
    )
    return dict(zip(METRICS, map(float, values), strict=True))


def chi_square(labels: Ids, size: int) -> float:
    """Of the class counts in consecutive groups of ``size`` against equal shares; mean."""
    groups = labels[: len(labels) // size * size].reshape(-1, size)
    counts = np.stack([(groups == number).sum(1) for number in range(CLASSES)], axis=1)
    expected = size / CLASSES
    return float(((counts - expected) ** 2 / expected).sum(1).mean())


def correlation(labels: Ids, lag: int) -> float:
    """Autocorrelation of the classes' indicators, averaged over the classes by their variance:
    how much more often two samples ``lag`` apart share a class than chance has it."""
    chance = 1 / CLASSES
    return float(((labels[lag:] == labels[:-lag]).mean() - chance) / (1 - chance))


def spearman(ids: Ids) -> float:
    """Of the stored rank against the served rank; there are no ties."""
    stored = np.argsort(np.argsort(ids))
    return float(np.corrcoef(stored, np.arange(len(ids)))[0, 1])


def measure(serve: Serve, samples: int, seeds: int) -> dict[str, tuple[float, float]]:
    """Metric -> (mean, standard deviation) over seeds; of the rank correlation, whose sign is
    chance, the root mean square."""
    each = [quality(serve(seed), samples) for seed in range(seeds)]
    found = {}
    for name in METRICS:
        values = np.array([one[name] for one in each])
        middle = np.sqrt((values**2).mean()) if name == "rank correlation" else values.mean()
        found[name] = float(middle), float(values.std(ddof=1))
    return found


def rows(found: dict[str, dict[str, tuple[float, float]]], seeds: int) -> Iterator[dict[str, Any]]:
    """Every order of Genus against the full permutation, the default against webdataset too."""
    default, *_, full = found
    for name, ours in found.items():
        if not name.startswith("genus"):
            continue
        others = [other for other in found if other.startswith("webdataset")]
        for peer in [full, *(others if name == default else [])]:
            for metric in METRICS:
                if metric == "lag 1":  # around 0, either sign: no ratio
                    continue
                (mine, deviation), (theirs, spread) = ours[metric], found[peer][metric]
                yield {
                    "row": f"shuffle quality, {name}: {metric}",
                    "ours": round(mine, 5),
                    "peer": round(theirs, 5),
                    "peer_name": peer,
                    "ratio": round(mine / theirs, 4),
                    "goal": GOAL,
                    "lower_is_better": True,
                    "ours_sd": round(deviation, 5),
                    "peer_sd": round(spread, 5),
                    "seeds": seeds,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="3 seeds instead of 20")
    parser.add_argument("--shards", type=int, default=60, help="of 1,000 samples")
    args = parser.parse_args()
    seeds = 3 if args.quick else 20
    if not args.json:
        print(f"| order | {' | '.join(METRICS)} |\n|---|{'---|' * len(METRICS)}")
    found = {}
    for name, serve in orders(args.shards).items():
        found[name] = measure(serve, args.shards * SHARD, seeds)
        if not args.json:
            cells = [f"{middle:.4f} ({spread:.4f})" for middle, spread in found[name].values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if args.json:
        for row in rows(found, seeds):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
