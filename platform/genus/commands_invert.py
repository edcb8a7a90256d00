"""``genus invert``: the codes of images in the latent space W of a style-based GAN."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genus.arguments import device_of, model_of
from genus.data.pixels import to_levels, to_unit
from genus.draws import Draws, seed_of
from genus.evaluate.grid import save_grid
from genus.evaluate.image_distance import ImageDistance
from genus.inversion import InversionConfig, Start, invert, nearest, start_of
from genus.invert_targets import Target, targets_of
from genus.latent_codes import (
    draw_codes,
    draw_styles,
    images_of,
    labels_in_turn,
    save_codes,
    style_space_of,
)
from genus.model import Model
from genus.objectives.latent_spaces import StyleSpace
from genus.objectives.phase import Codes
from genus.sampling import evaluating

STATISTICS = 10_000
"""Draws of w whose mean and deviation the search starts from (Karras et al. 2020)."""


def invert_images(arguments: Namespace) -> None:
    """PREFIX.png, a row of target and projection for each image (several such pairs a row), and
    PREFIX.npz with the codes; the distances are printed beside those of images that took no search.
    """
    model = model_of(arguments)
    space = style_space_of(model, "invert")
    targets = targets_of(model, arguments)
    for network in model.networks.values():
        network.requires_grad_(False)
    with evaluating(model.networks):
        _invert(model, space, targets, arguments)


def _invert(
    model: Model, space: StyleSpace, targets: Sequence[Target], arguments: Namespace
) -> None:
    batch = arguments.batch
    distance = ImageDistance(arguments.distance, model.info.resolution, device_of(arguments))
    starts = {label: _start(model, space, label, arguments) for label in _kinds(targets)}
    wanted = to_unit(torch.stack([target.image for target in targets])).to(device_of(arguments))
    codes = _joined(
        [
            _search(model, space, distance, targets[rows], wanted[rows], starts, arguments)
            for rows in (slice(first, first + batch) for first in range(0, len(targets), batch))
        ]
    )
    images = images_of(model, space, codes, batch)
    with torch.no_grad():
        embedded = torch.cat([distance.embed(part) for part in torch.split(wanted, batch)])
        reached = torch.cat([distance.embed(part) for part in torch.split(images, batch)])
        found_distance = distance.between(reached, embedded)
        mean = _of_means(model, space, distance, targets, starts, embedded)
        best = _of_samples(model, space, distance, targets, embedded, arguments)
    _report(targets, found_distance, mean, best, distance, arguments)
    numbers = {"distances": found_distance, "mean_distances": mean, "best_distances": best}
    about = {
        "images": [target.name for target in targets],
        "space": arguments.space,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "distance": distance.description,
        "samples_compared": arguments.samples,
    }
    picture, file = (Path(f"{arguments.out}{end}") for end in (".png", ".npz"))
    pairs = torch.stack([torch.stack([t.image for t in targets]), to_levels(images).cpu()], dim=1)
    save_grid(pairs.flatten(0, 1), picture, 2 * min(4, len(targets)))
    save_codes(file, model, codes, [target.label for target in targets], numbers, about)
    print(f"{picture}: targets, each beside its projection; {file}: codes, ema {model.ema}")


def _search(
    model: Model,
    space: StyleSpace,
    distance: ImageDistance,
    targets: Sequence[Target],
    wanted: Tensor,
    starts: Mapping[int, Start],
    arguments: Namespace,
) -> Codes:
    """Codes of the targets ``wanted`` (B, C, R, R). The random numbers of each are its name's."""
    rows = [starts[target.label] for target in targets]
    seeds = [seed_of(arguments.seed, "invert", target.name) for target in targets]
    embedded = distance.embed(wanted)
    return invert(
        lambda codes: space.decode(model.networks, codes),
        lambda images: distance.between(distance.embed(images), embedded),
        Start(torch.cat([row.mean for row in rows]), torch.cat([row.deviation for row in rows])),
        space.generation.layers,
        space.noise_sizes(model.networks["synthesis"]),
        Draws.of(seeds, device=wanted.device),
        InversionConfig(steps=arguments.steps, each_layer=arguments.space == "w+"),
    )


def _kinds(targets: Sequence[Target]) -> set[int]:
    return {target.label for target in targets}


@torch.no_grad()
def _start(model: Model, space: StyleSpace, label: int, arguments: Namespace) -> Start:
    kind, device = None if label < 0 else label, device_of(arguments)
    drawn = draw_styles(
        model, space, STATISTICS, kind, seed=arguments.seed, of="mean", device=device
    )
    return start_of(drawn.w)


def _of_means(
    model: Model,
    space: StyleSpace,
    distance: ImageDistance,
    targets: Sequence[Target],
    starts: Mapping[int, Start],
    embedded: Tensor,
) -> Tensor:
    """(N,) distances of the image of the mean w, which the search began at, without noise."""
    made = {
        label: distance.embed(
            space.decode(model.networks, Codes(space.generation.spread(start.mean)))
        )
        for label, start in starts.items()
    }
    return distance.between(torch.cat([made[target.label] for target in targets]), embedded)


def _of_samples(
    model: Model,
    space: StyleSpace,
    distance: ImageDistance,
    targets: Sequence[Target],
    embedded: Tensor,
    arguments: Namespace,
) -> Tensor:
    """(N,) distances of the nearest of ``--samples`` random samples, of the target's class where
    that is known."""
    best = embedded.new_full((len(targets),), torch.inf)
    for label in _kinds(targets):
        mine = torch.tensor([target.label == label for target in targets], device=best.device)
        for first in range(0, arguments.samples, arguments.batch):
            numbers = range(first, min(first + arguments.batch, arguments.samples))
            labels = labels_in_turn(model, numbers.stop, None if label < 0 else label)
            codes = draw_codes(
                model,
                space,
                numbers,
                None if labels is None else labels[first:],
                seed=arguments.seed,
                device=best.device,
            )
            made = distance.embed(images_of(model, space, codes, arguments.batch))
            best[mine] = torch.minimum(best[mine], nearest(embedded[mine], made))
    return best


def _report(
    targets: Sequence[Target],
    found: Tensor,
    mean: Tensor,
    best: Tensor,
    distance: ImageDistance,
    arguments: Namespace,
) -> None:
    width = max(5, *(len(target.name) for target in targets))
    heads = ["projection", "mean image", f"best of {arguments.samples}"]
    print(f"distance: {distance.description}")
    print(f"{'image':<{width}}" + "".join(f"{head:>14}" for head in heads))
    for target, *row in zip(targets, found, mean, best, strict=True):
        print(f"{target.name:<{width}}" + "".join(f"{float(value):>14.4f}" for value in row))
    nearer = int((found < best).sum())
    print(
        f"{nearer} of {len(targets)} projections are nearer than the best of {arguments.samples} "
        f"samples; mean share of its distance: {float((found / best).mean()):.2f}"
    )


def _joined(parts: Sequence[Codes]) -> Codes:
    noises = [part.noise for part in parts if part.noise is not None]
    return Codes(torch.cat([part.code for part in parts]), torch.cat(noises) if noises else None)
