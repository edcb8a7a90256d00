"""``genus interpolate`` for generators: walks between codes that were drawn, or inverted."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from genus.arguments import check_class, check_images, device_of, options_of
from genus.data.pixels import to_levels
from genus.errors import ConfigError
from genus.evaluate.grid import save_grid
from genus.evaluate.walk import great_circle, straight
from genus.latent_codes import draw_codes, images_of, labels_in_turn, load_codes, rows_of
from genus.model import Model
from genus.objectives.phase import Codes, LatentSpace
from genus.sampling import evaluating

PAIRS = 8
"""Rows of the picture."""
Ends = tuple[Codes, Codes, list[int] | None]
"""(P, ...) and (P, ...), and the pairs' classes."""


def walk(model: Model, arguments: Namespace) -> None:
    """Row i goes from the code of sample 2i of 'genus sample' to that of sample 2i + 1, both of its
    class; or from one of ``--codes`` to the next. Codes go straight in w and along the great circle
    in z; noise goes along the great circle, and drawn pairs have the first one's all the way."""
    check_images(model, "interpolate")
    if arguments.reference is not None:
        raise ConfigError("--reference is for families that encode: here the ends are drawn")
    spaces = model.objective.spaces
    name = arguments.space or next(iter(spaces))
    if name not in spaces:
        raise ConfigError(
            f"--space {name}: the generator of {model.folder} has {' and '.join(spaces)}"
        )
    space: LatentSpace = spaces[name]
    with evaluating(model.networks):
        rows = []
        for first, last, labels in _ends(model, space, name, arguments):
            path = _between(first, last, arguments.steps, arguments.linear or not space.is_normal)
            label = None
            if labels is not None:
                label = torch.tensor(labels, device=path.code.device)
                label = label.repeat_interleave(arguments.steps)
            rows.append(to_levels(images_of(model, space, path, arguments.batch, label)).cpu())
    save_grid(torch.cat(rows), arguments.out, arguments.steps)
    way = "the great circle" if space.is_normal and not arguments.linear else "a straight line"
    pairs = sum(len(images) for images in rows) // arguments.steps
    print(f"{arguments.out}: {pairs} pairs along {way} in {name}, ema {model.ema}")


def _ends(model: Model, space: LatentSpace, name: str, arguments: Namespace) -> Iterator[Ends]:
    """A few pairs at once, as many as one batch of images, since noise of many is large."""
    if arguments.codes is not None:
        yield from _kept_ends(model, name, arguments)
        return
    pairs = arguments.pairs or PAIRS
    for label in (arguments.label, arguments.to_class):
        if label is not None:
            check_class(model, label)
    if arguments.to_class is not None and name != "w":
        raise ConfigError("--to-class is for walks in w: z has no way between classes")
    labels = labels_in_turn(model, pairs, arguments.label)
    ends = labels if arguments.to_class is None else [arguments.to_class] * pairs
    options, device = options_of(arguments), device_of(arguments)
    for some in _groups(pairs, arguments):
        first, last = (
            draw_codes(
                model,
                space,
                range(2 * some.start + begin, 2 * some.stop, 2),
                None if own is None else own[some],
                seed=arguments.seed,
                options=options,
                device=device,
            )
            for begin, own in ((0, labels), (1, ends))
        )
        own = None if labels is None else labels[some]
        yield first, Codes(last.code, first.noise), own


def _groups(pairs: int, arguments: Namespace) -> Iterator[slice]:
    size = max(1, arguments.batch // arguments.steps)
    return (slice(start, min(start + size, pairs)) for start in range(0, pairs, size))


def _kept_ends(model: Model, name: str, arguments: Namespace) -> Iterator[Ends]:
    given = [
        flag
        for flag, value in (
            ("--class", arguments.label),
            ("--to-class", arguments.to_class),
            ("--truncation", arguments.truncation),
        )
        if value is not None
    ]
    if name != "w" or given:
        raise ConfigError(
            f"{given[0] if given else '--space z'} is for ends that are drawn: --codes are codes "
            "in w as they were found"
        )
    codes = load_codes(arguments.codes, model, device_of(arguments)).codes
    most = len(codes.code) - 1
    if most < 1 or (arguments.pairs or 1) > most:
        raise ConfigError(
            f"{arguments.codes} has {most + 1} codes, which make {most} walks from one to the next"
        )
    pairs = arguments.pairs or most
    for some in _groups(pairs, arguments):
        yield rows_of(codes, some), rows_of(codes, slice(some.start + 1, some.stop + 1)), None


def _between(first: Codes, last: Codes, steps: int, is_straight: bool) -> Codes:
    """(P * steps, ...), row by row of the picture; the ends are the codes themselves."""
    code = _way(straight if is_straight else great_circle, first.code, last.code, steps)
    noise = None
    if first.noise is last.noise and first.noise is not None:
        noise = first.noise[:, None].expand(-1, steps, -1).flatten(0, 1)
    elif first.noise is not None and last.noise is not None:
        noise = _way(great_circle, first.noise, last.noise, steps)
    return Codes(code, noise)


def _way(way: Callable[[Tensor, Tensor, int], Tensor], a: Tensor, b: Tensor, steps: int) -> Tensor:
    path = way(a, b, steps)
    path[:, 0], path[:, -1] = a, b  # to the bit
    return path.flatten(0, 1)
