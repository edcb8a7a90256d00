"""``genus edit``: a direction in W along which one attribute of the images changes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor

from genus.arguments import check_class, check_images, device_of, model_of, options_of
from genus.data.pixels import to_levels
from genus.direction_files import load_direction, save_direction
from genus.edit_table import print_table
from genus.errors import ConfigError
from genus.evaluate.grid import save_grid
from genus.evaluate.image_measures import MEASURES, Measure, nearness
from genus.latent_codes import draw_codes, images_of, labels_in_turn, load_codes, style_space_of
from genus.latent_directions import (
    Direction,
    between_classes,
    boundary,
    component,
    correlation,
    in_deviations,
    slope,
    within,
    without,
)
from genus.model import Model
from genus.objectives.latent_spaces import StyleSpace
from genus.objectives.phase import Codes
from genus.sampling import evaluating

ROWS = 8
HELD_OUT = 200
"""Fresh draws that an edit is measured on."""


def edit(arguments: Namespace) -> None:
    """A picture with a row a sample and a column a step along the direction; the attributes before
    and after are printed."""
    model = model_of(arguments)
    space = style_space_of(model, "edit")
    check_images(model, "edit")
    layers = _layers(arguments.layers, space.generation.layers)
    _check(model, arguments)
    with evaluating(model.networks), torch.no_grad():
        direction, measures = _direction(model, space, arguments)
        low, high = arguments.ends or ((0, 1) if arguments.to_class is not None else (-3, 3))
        amounts = torch.linspace(low, high, arguments.steps, dtype=torch.float64).tolist()
        if arguments.codes is not None:
            shown = load_codes(arguments.codes, model, device_of(arguments)).codes
            measured, whose = shown, f"the {len(shown.code)} codes of {arguments.codes}"
        else:
            shown = _drawn(model, space, arguments, arguments.n or ROWS, "sample")[0]
            measured = _drawn(model, space, arguments, HELD_OUT, "held out")[0]
            whose = f"{HELD_OUT} other draws"
        columns = [
            to_levels(images_of(model, space, moved, arguments.batch)).cpu()
            for moved in _moved(shown, direction, amounts, layers)
        ]
        found = {name: torch.empty(len(amounts), len(measured.code)) for name in measures}
        for number, moved in enumerate(_moved(measured, direction, amounts, layers)):
            images = images_of(model, space, moved, arguments.batch)
            for name, measure in measures.items():
                found[name][number] = measure(images).cpu()
    save_grid(torch.stack(columns, dim=1).flatten(0, 1), arguments.out, len(amounts))
    print_table(direction, amounts, found, whose)
    if arguments.save is not None:
        save_direction(arguments.save, model, direction)
        print(f"{arguments.save}: the direction")
    print(f"{arguments.out}: {len(shown.code)} rows, ema {model.ema}")


def _check(model: Model, arguments: Namespace) -> None:
    """ConfigError for what can't be asked together."""
    for name in [arguments.attribute, *_kept(arguments)]:
        if name is not None and name not in MEASURES:
            raise ConfigError(f"no attribute '{name}': there are {', '.join(MEASURES)}")
    if arguments.attribute in _kept(arguments):
        raise ConfigError(f"--keep {arguments.attribute}: it is the attribute to change")
    if arguments.keep and arguments.direction is not None:
        raise ConfigError("--keep: a direction of --direction is taken as it is")
    if arguments.fit is not None and arguments.attribute is None:
        raise ConfigError("--fit is for --attribute")
    if arguments.codes is not None and arguments.n is not None:
        raise ConfigError("--n is how many samples to draw: with --codes all of these are shown")
    if arguments.samples < 10:
        raise ConfigError(f"--samples {arguments.samples}: 10 at least")
    for label in (arguments.label, arguments.to_class):
        if label is not None:
            check_class(model, label)
    if arguments.to_class is not None and arguments.label is None:
        raise ConfigError("--to-class: name the class that it starts from by --class")
    if arguments.to_class is not None and arguments.to_class == arguments.label:
        raise ConfigError(f"--to-class {arguments.to_class}: it is the class that it starts from")


def _kept(arguments: Namespace) -> list[str]:
    return [name for name in arguments.keep.split(",") if name]


def _layers(text: str | None, count: int) -> slice:
    """ "A-B" or "A", from 0, both included. ConfigError."""
    if text is None:
        return slice(None)
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        low, high = 0, -1
    if not 0 <= low <= high < count:
        raise ConfigError(f"--layers {text}: A-B within 0-{count - 1}, this generator's layers")
    return slice(low, high + 1)


def _drawn(
    model: Model, space: StyleSpace, arguments: Namespace, count: int, of: str
) -> tuple[Codes, list[int] | None]:
    labels = labels_in_turn(model, count, arguments.label)
    options, device, seed = options_of(arguments), device_of(arguments), arguments.seed
    numbers = range(count)
    codes = draw_codes(
        model, space, numbers, labels, seed=seed, of=of, options=options, device=device
    )
    return codes, labels


def _moved(
    codes: Codes, direction: Direction, amounts: Sequence[float], layers: slice
) -> list[Codes]:
    return [Codes(direction.moved(codes.code, by, layers), codes.noise) for by in amounts]


def _direction(
    model: Model, space: StyleSpace, arguments: Namespace
) -> tuple[Direction, dict[str, Measure]]:
    """What was asked for, and what to measure along it: its attribute first."""
    if arguments.direction is not None:
        return load_direction(arguments.direction, model), MEASURES
    codes, labels = _drawn(model, space, arguments, arguments.samples, "direction")
    centred = within(codes.code[:, 0], labels)
    kept = _kept(arguments)
    images = None
    if kept or arguments.attribute is not None:
        images = images_of(model, space, codes, arguments.batch)

    def value(name: str) -> Tensor:
        assert images is not None
        return within(MEASURES[name](images).double(), labels)

    others = [slope(centred, value(name)) for name in kept]
    if arguments.to_class is not None:
        return _to_class(model, space, arguments, codes, others)
    if arguments.component is not None:
        vector, share = component(centred, arguments.component)
        print(f"component {arguments.component} has {share:.1%} of w's variance within a class")
        name = f"component {arguments.component}"
        return in_deviations(name, without(vector, others), centred), MEASURES
    name = arguments.attribute
    y = value(name)
    vector = boundary(centred, y > y.median()) if arguments.fit == "logistic" else slope(centred, y)
    fresh, fresh_labels = _drawn(model, space, arguments, HELD_OUT, "held out")
    truth = within(MEASURES[name](images_of(model, space, fresh, arguments.batch)), fresh_labels)
    guess = within(fresh.code[:, 0], fresh_labels).double() @ vector
    print(
        f"{name} is read off w with correlation {correlation(guess, truth):.2f} in {HELD_OUT} "
        "other draws" + (" (within classes)" if labels is not None else "")
    )
    rest = {other: measure for other, measure in MEASURES.items() if other != name}
    direction = in_deviations(name, without(vector, others), centred)
    return direction, {name: MEASURES[name], **rest}


def _to_class(
    model: Model, space: StyleSpace, arguments: Namespace, codes: Codes, others: list[Tensor]
) -> tuple[Direction, dict[str, Measure]]:
    """From the centre of the draws ``codes``, of one class, to that of the same z in the other."""
    there = Namespace(**{**vars(arguments), "label": arguments.to_class})
    far, _ = _drawn(model, space, there, arguments.samples, "direction")
    start, end = codes.code[:, 0].mean(0), far.code[:, 0].mean(0)
    name = f"class {arguments.label} to {arguments.to_class}"
    direction = between_classes(name, start, start + without(end - start, others).to(start))
    ends = [images_of(model, space, one, arguments.batch).mean(0) for one in (codes, far)]
    return direction, {f"like class {arguments.to_class}": nearness(*ends), **MEASURES}
