"""The images that ``genus invert`` is asked to invert."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from genus.arguments import check_class, reference_of
from genus.data.stream import iterate_once
from genus.errors import ConfigError, DataError
from genus.image_files import read_image, stored_size
from genus.model import Model


@dataclass(frozen=True)
class Target:
    """An image to invert."""

    name: str
    image: Tensor
    """(C, R, R) uint8."""
    label: int
    """-1: not known."""


def targets_of(model: Model, arguments: Namespace) -> list[Target]:
    """What the arguments name: files, numbers of the test split, or its first images."""
    if arguments.label is not None:
        check_class(model, arguments.label)
    if arguments.images and arguments.n is not None:
        raise ConfigError("--n is how many test images to take: leave it out where IMAGE is given")
    named = arguments.images or [str(number) for number in range(arguments.n or 8)]
    wanted = {int(name) for name in named if name.isdecimal()}
    stored = _stored(model, arguments, wanted) if wanted else {}
    label = -1 if arguments.label is None else arguments.label
    targets = []
    for name in named:
        if name.isdecimal():
            image, own = stored[int(name)]
            targets.append(Target(name, image, own if arguments.label is None else label))
        else:
            targets.append(Target(name, _read(Path(name), model, arguments.fit), label))
    return targets


def _stored(model: Model, arguments: Namespace, wanted: set[int]) -> dict[int, tuple[Tensor, int]]:
    """Images (C, R, R) of the test split by their numbers, each with its label (-1: none)."""
    data = reference_of(model, arguments.reference)
    found: dict[int, tuple[Tensor, int]] = {}
    seen = 0
    for batch in iterate_once(data, 100, limit=max(wanted) + 1):
        if "image" not in batch or batch["image"].shape[1] != model.info.channels:
            raise DataError(f"{data.url} has no images such as {model.folder} makes")
        has_label = bool(model.info.classes) and "label" in batch
        for row in range(len(batch)):
            if seen + row in wanted:
                label = int(batch["label"][row]) if has_label else -1
                found[seen + row] = batch["image"][row].contiguous(), label
        seen += len(batch)
    if missing := sorted(wanted - set(found)):
        raise ConfigError(f"{data.url} has images 0 to {seen - 1}, and {missing[0]} is asked for")
    return found


def _read(path: Path, model: Model, fit: str | None) -> Tensor:
    fit = fit or model.config.data.fit
    side = model.info.resolution
    if fit == "pad":
        height, width = stored_size(path, "IMAGE")
        if max(height, width) > side:
            raise ConfigError(
                f"{path} has {width} x {height} pixels, and {model.folder} makes {side} x {side}, "
                "of data that are padded, not scaled: --fit resize scales it down to cover that"
            )
    return read_image(path, model.info, "resize" if fit == "resize" else "pad", "IMAGE")
