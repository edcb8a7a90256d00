"""Latent codes of a style-based generator: drawn, averaged, and kept in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from genus.atomic import replacing
from genus.draws import Draws, seed_of
from genus.errors import ConfigError
from genus.model import Model
from genus.objectives.latent_spaces import StyleSpace
from genus.objectives.phase import CanWalk, Codes, LatentSpace, SampleOptions
from genus.sampling import grid_labels

SCHEMA = "genus-codes/1"


def style_space_of(model: Model, command: str) -> StyleSpace:
    """ConfigError where the run's model is no style-based generator."""
    spaces = model.objective.spaces if isinstance(model.objective, CanWalk) else {}
    space = spaces.get("w")
    if not isinstance(space, StyleSpace):
        raise ConfigError(
            f"genus {command} is for style-based GANs (network=StyleGAN2Config), and "
            f"{model.folder} has a model without the latent space w"
        )
    return space


def draw_codes(
    model: Model,
    space: LatentSpace,
    numbers: Sequence[int],
    labels: Sequence[int] | None,
    *,
    seed: int,
    of: str = "sample",
    options: SampleOptions | None = None,
    device: torch.device | str = "cpu",
) -> Codes:
    """Codes that belong to (seed, number, label). Those ``of`` "sample" are of the images that
    'genus sample' draws with these numbers."""
    draws = Draws.of([seed_of(seed, of, number) for number in numbers], device=device)
    label = None if labels is None else torch.tensor(list(labels), device=device)
    return space.draw(model.networks, draws, label, options or SampleOptions())


@dataclass(frozen=True)
class DrawnCodes:
    """Codes in W of which only the styles are kept. Their noise is far larger (11 MB a row of 1024
    pixels): it is drawn for the rows that are looked at."""

    space: StyleSpace
    styles: Tensor
    """(N, L, W), alike in all layers."""
    draws: Draws
    labels: list[int] | None

    @property
    def w(self) -> Tensor:
        """(N, W)"""
        return self.styles[:, 0]

    def batches(self, size: int) -> Iterator[Codes]:
        """All rows in order, at most ``size`` at once, with their noise."""
        for start in range(0, len(self.styles), size):
            draws = self.draws.window(start, min(start + size, len(self.styles)))
            rows = self.styles[start : start + size]
            yield Codes(rows, self.space.noise(draws, rows.dtype))


def draw_styles(
    model: Model,
    space: StyleSpace,
    count: int,
    label: int | None,
    *,
    seed: int,
    of: str = "sample",
    options: SampleOptions | None = None,
    device: torch.device | str = "cpu",
) -> DrawnCodes:
    """The first ``count`` of what ``draw_codes`` draws, of one class or of all in turn."""
    labels = labels_in_turn(model, count, label)
    draws = Draws.of([seed_of(seed, of, number) for number in range(count)], device=device)
    kinds = None if labels is None else torch.tensor(labels, device=device)
    styles = space.styles(model.networks, draws, kinds, options or SampleOptions())
    return DrawnCodes(space, styles, draws, labels)


def labels_in_turn(model: Model, count: int, label: int | None) -> list[int] | None:
    """``label`` for all, or the model's classes in turn; None where it has none."""
    return grid_labels(count, model.info.classes) if label is None else [label] * count


def batches_of(codes: Codes, size: int) -> Iterator[Codes]:
    """All rows in order, at most ``size`` at once."""
    for start in range(0, len(codes.code), size):
        yield rows_of(codes, slice(start, start + size))


def rows_of(codes: Codes, rows: slice | Tensor) -> Codes:
    """Some of the codes."""
    return Codes(codes.code[rows], None if codes.noise is None else codes.noise[rows])


@torch.no_grad()
def images_of(
    model: Model, space: LatentSpace, codes: Codes, batch: int, label: Tensor | None = None
) -> Tensor:
    """(B, C, H, W) images nominally in [-1, 1], made ``batch`` at once."""
    parts = []
    for start in range(0, len(codes.code), batch):
        rows = slice(start, start + batch)
        own = None if label is None else label[rows]
        parts.append(space.decode(model.networks, rows_of(codes, rows), own))
    return torch.cat(parts)


@dataclass(frozen=True)
class KeptCodes:
    """What ``save_codes`` wrote."""

    codes: Codes
    labels: list[int]
    """-1: none."""
    about: dict[str, Any]


def save_codes(
    path: Path,
    model: Model,
    codes: Codes,
    labels: Sequence[int],
    numbers: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """An .npz of ``styles`` (N, L, W), ``noise`` (N, n), ``labels`` (N,), what else was found for
    each row (``numbers``), and ``about``: JSON of the model and of how they were found."""
    noise = codes.noise if codes.noise is not None else torch.empty(len(codes.code), 0)
    arrays = {"styles": codes.code, "noise": noise, **numbers}
    text = json.dumps({"schema": SCHEMA, **identity(model), **about})
    with replacing(path) as temporary, temporary.open("wb") as file:
        plain: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
        plain |= {"labels": np.asarray(labels), "about": np.array(text)}
        np.savez_compressed(file, **plain)


def load_codes(path: Path, model: Model, device: torch.device | str) -> KeptCodes:
    """ConfigError for what is no such file, or of other weights than the model's."""
    arrays = read_arrays(path, SCHEMA, "genus invert RUN --out PREFIX", model)
    noise = torch.from_numpy(arrays["noise"]).to(device)
    codes = Codes(torch.from_numpy(arrays["styles"]).to(device), noise if noise.shape[1] else None)
    return KeptCodes(codes, arrays["labels"].tolist(), json.loads(str(arrays["about"])))


def read_arrays(path: Path, schema: str, maker: str, model: Model) -> dict[str, Any]:
    """The arrays of an .npz that ``maker`` wrote for these very weights. ConfigError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays["about"]))
        found = about.get("schema")
    except (OSError, BadZipFile, ValueError, KeyError, TypeError, AttributeError):
        found = None
    if found != schema:
        raise ConfigError(f"{path} is no file that '{maker}' writes")
    own = identity(model)
    if about["weights"] != own["weights"]:
        raise ConfigError(
            f"{path} is of other weights than {model.folder} at {model.samples:,} samples, ema "
            f"{model.ema} (it was made with {about['run']} at {about['samples']:,} samples, ema "
            f"{about['ema']}): codes mean something to their own weights only. Make it anew with "
            f"'{maker}'"
        )
    return arrays


def identity(model: Model) -> dict[str, Any]:
    """Which weights codes belong to. ``weights`` is the hash of those of the generator."""
    digest = hashlib.sha256()
    for network in ("mapping", "synthesis"):
        for name, value in sorted(model.networks[network].state_dict().items()):
            digest.update(f"{network}.{name}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return {
        "run": str(model.folder),
        "checkpoint": model.checkpoint,
        "samples": model.samples,
        "ema": model.ema,
        "weights": digest.hexdigest(),
    }
