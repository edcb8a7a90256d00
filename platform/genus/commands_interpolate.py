"""``genus interpolate``: pictures of the way between two codes in a model's latent space."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict, deque

import torch
from torch import Tensor

from genus.arguments import check_class, check_images, device_of, model_of, reference_of
from genus.commands_walk import PAIRS, walk
from genus.data.batch import Batch
from genus.data.pixels import to_levels
from genus.data.stream import DataConfig
from genus.errors import ConfigError
from genus.evaluate.grid import save_grid
from genus.evaluate.subset import rebatch, shuffled
from genus.evaluate.walk import great_circle, straight
from genus.model import Model
from genus.objectives.phase import CanEncode, CanWalk


@torch.no_grad()
def interpolate(arguments: Namespace) -> None:
    """A picture whose rows walk from one code to another: of test images of the same class, or, of
    generators, of codes that are drawn."""
    model = model_of(arguments)
    if arguments.steps < 2:
        raise ConfigError(f"--steps {arguments.steps}: a way has 2 ends at least")
    if isinstance(model.objective, CanWalk):
        return walk(model, arguments)
    if not isinstance(model.objective, CanEncode):
        raise ConfigError(
            f"{model.folder} was trained without latent codes: interpolation needs a family that "
            "encodes and decodes, such as normalizing flows (recipes/flow.py), or a generator "
            "(recipes/gan.py)"
        )
    check_images(model, "interpolate")
    for name in ("space", "to_class", "codes", "truncation"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for GANs: here the ends are test images' codes"
            )
    arguments.pairs = arguments.pairs or PAIRS
    batch = _pairs(model, reference_of(model, arguments.reference), arguments)
    codes = model.objective.encode(model.networks, batch)
    way = straight if arguments.linear else great_circle
    path = way(codes[::2], codes[1::2], arguments.steps).flatten(0, 1)
    label = None
    if model.info.classes:
        label = batch["label"][::2].repeat_interleave(arguments.steps)
    parts = []
    for start in range(0, len(path), arguments.batch):
        rows = slice(start, start + arguments.batch)
        own = None if label is None else label[rows]
        parts.append(to_levels(model.objective.decode(model.networks, path[rows], own)).cpu())
    save_grid(torch.cat(parts), arguments.out, arguments.steps)
    how = "a straight line" if arguments.linear else "the great circle"
    print(f"{arguments.out}: {arguments.pairs} pairs along {how}, ema {model.ema}")


def _pairs(model: Model, data: DataConfig, arguments: Namespace) -> Batch:
    """(2 * pairs) images, two neighbours a pair, of one class where there are classes.

    Pair i depends on i, the seed and ``--class`` only.
    """
    classes, count = model.info.classes, arguments.pairs
    if arguments.label is not None:
        check_class(model, arguments.label)
    wanted = [i % classes if classes else 0 for i in range(count)]
    if arguments.label is not None:
        wanted = [arguments.label] * count
    missing = {kind: 2 * wanted.count(kind) for kind in wanted}
    found: defaultdict[int, deque[tuple[dict[str, Tensor], Tensor]]] = defaultdict(deque)
    batches = shuffled(data, batch=100, device=device_of(arguments), seed=arguments.seed)
    for batch in batches:
        kinds = batch["label"].tolist() if classes else [0] * len(batch)
        for row, kind in enumerate(kinds):
            if missing.get(kind, 0):
                fields = {name: value[row] for name, value in batch.fields.items()}
                found[kind].append((fields, batch.ids[row]))
                missing[kind] -= 1
        if not any(missing.values()):
            break
    if any(missing.values()):
        raise ConfigError(
            f"{data.url} has too few images of a class for {count} pairs: ask for less"
        )
    rows = [found[kind].popleft() for kind in wanted for _ in range(2)]
    together = {name: torch.stack([fields[name] for fields, _ in rows]) for name in rows[0][0]}
    return rebatch(together, torch.stack([number for _, number in rows]), arguments.seed)
