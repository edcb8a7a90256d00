"""``genus edit``: a direction in W along which one attribute of the images changes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from genus.arguments import check_class, check_images, device_of, model_of, options_of
from genus.data.pixels import to_levels
from genus.direction_files import load_direction, save_direction
from genus.edit_table import print_table
from genus.errors import ConfigError
from genus.evaluate.grid import save_grid
from genus.evaluate.image_measures import MEASURES, Measure, nearness
from genus.latent_codes import DrawnCodes, batches_of, draw_styles, load_codes, style_space_of
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
            codes = load_codes(arguments.codes, model, device_of(arguments)).codes
            shown, measured = (batches_of(codes, arguments.batch) for _ in range(2))
            whose = f"the {len(codes.code)} codes of {arguments.codes}"
        else:
            drawn = _drawn(model, space, arguments, arguments.n or ROWS, "sample")
            others = _drawn(model, space, arguments, HELD_OUT, "held out")
            shown, measured = (some.batches(arguments.batch) for some in (drawn, others))
            whose = f"{HELD_OUT} other draws"

        def images(batch: Codes) -> Iterator[Tensor]:
            """One after the other, what the edit makes of the rows at each amount."""
            for by in amounts:
                styles = direction.moved(batch.code, by, layers)
                yield space.decode(model.networks, Codes(styles, batch.noise))

        picture = torch.cat(
            [torch.stack([to_levels(x).cpu() for x in images(batch)], dim=1) for batch in shown]
        )
        steps = [[_measured(x, measures) for x in images(batch)] for batch in measured]
    found = {
        name: torch.cat([torch.stack([step[name] for step in rows]) for rows in steps], dim=1)
        for name in measures
    }
    save_grid(picture.flatten(0, 1), arguments.out, len(amounts))
    print_table(direction, amounts, found, whose)
    if arguments.save is not None:
        save_direction(arguments.save, model, direction)
        print(f"{arguments.save}: the direction")
    print(f"{arguments.out}: {len(picture)} rows, ema {model.ema}")


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
) -> DrawnCodes:
    options, device = options_of(arguments), device_of(arguments)
    label, seed = arguments.label, arguments.seed
    return draw_styles(model, space, count, label, seed=seed, of=of, options=options, device=device)


def _measured(images: Tensor, measures: Mapping[str, Measure]) -> dict[str, Tensor]:
    """(B,) of each, on the host."""
    return {name: measure(images).cpu() for name, measure in measures.items()}


def _measured_draws(
    model: Model, drawn: DrawnCodes, names: Sequence[str], batch: int
) -> dict[str, Tensor]:
    """(N,) of each attribute, less its class's mean, where the codes are."""
    measures = {name: MEASURES[name] for name in names}
    parts = []
    if measures:
        for codes in drawn.batches(batch):
            parts.append(_measured(drawn.space.decode(model.networks, codes), measures))
    device = drawn.styles.device
    whole = {name: torch.cat([part[name] for part in parts]).to(device) for name in names}
    return {name: within(values.double(), drawn.labels) for name, values in whole.items()}


def _direction(
    model: Model, space: StyleSpace, arguments: Namespace
) -> tuple[Direction, dict[str, Measure]]:
    """What was asked for, and what to measure along it: its attribute first."""
    if arguments.direction is not None:
        return load_direction(arguments.direction, model), MEASURES
    drawn = _drawn(model, space, arguments, arguments.samples, "direction")
    centred = within(drawn.w, drawn.labels)
    kept, name, batch = _kept(arguments), arguments.attribute, arguments.batch
    values = _measured_draws(model, drawn, [*kept, *([name] if name else [])], batch)
    others = [slope(centred, values[other]) for other in kept]
    if arguments.to_class is not None:
        return _to_class(model, space, arguments, drawn, others)
    if arguments.component is not None:
        vector, share = component(centred, arguments.component)
        print(f"component {arguments.component} has {share:.1%} of w's variance within a class")
        name = f"component {arguments.component}"
        return in_deviations(name, without(vector, others), centred), MEASURES
    y = values[name]
    vector = boundary(centred, y > y.median()) if arguments.fit == "logistic" else slope(centred, y)
    fresh = _drawn(model, space, arguments, HELD_OUT, "held out")
    truth = _measured_draws(model, fresh, [name], batch)[name]
    guess = within(fresh.w, fresh.labels).double() @ vector
    print(
        f"{name} is read off w with correlation {correlation(guess, truth):.2f} in {HELD_OUT} "
        "other draws" + (" (within classes)" if drawn.labels is not None else "")
    )
    rest = {other: measure for other, measure in MEASURES.items() if other != name}
    direction = in_deviations(name, without(vector, others), centred)
    return direction, {name: MEASURES[name], **rest}


def _to_class(
    model: Model, space: StyleSpace, arguments: Namespace, drawn: DrawnCodes, others: list[Tensor]
) -> tuple[Direction, dict[str, Measure]]:
    """From the centre of what is drawn, of one class, to that of the same z in the other."""
    there = Namespace(**{**vars(arguments), "label": arguments.to_class})
    far = _drawn(model, space, there, arguments.samples, "direction")
    start, end = drawn.w.mean(0), far.w.mean(0)
    name = f"class {arguments.label} to {arguments.to_class}"
    direction = between_classes(name, start, start + without(end - start, others).to(start))
    ends = [_mean_image(model, some, arguments.batch) for some in (drawn, far)]
    return direction, {f"like class {arguments.to_class}": nearness(*ends), **MEASURES}


def _mean_image(model: Model, drawn: DrawnCodes, batch: int) -> Tensor:
    """(C, H, W)"""
    total: Tensor | float = 0.0
    for codes in drawn.batches(batch):
        total = total + drawn.space.decode(model.networks, codes).double().sum(0)
    assert isinstance(total, Tensor)
    return (total / len(drawn.styles)).float()
