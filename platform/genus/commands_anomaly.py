"""``genus anomaly``: how well a model's likelihood tells outliers from its own test images."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

import torch

from genus.arguments import check_images, device_of, model_of, plain, reference_of
from genus.data import datasets
from genus.data.batch import Batch
from genus.data.manifest import Manifest
from genus.data.stream import DataConfig, read_info
from genus.errors import ConfigError
from genus.evaluate.anomaly import Scored, auroc, auroc_error, score_images, scores
from genus.evaluate.kept import keep
from genus.evaluate.passport import Figure, Passport
from genus.evaluate.subset import shuffled
from genus.model import Model
from genus.objectives.phase import CanLogDensity


def anomaly(arguments: Namespace) -> None:
    """A table of how well likelihood scores tell each outlier set from test images."""
    model = model_of(arguments)
    if not isinstance(model.objective, CanLogDensity):
        raise ConfigError(f"{model.folder} is of a family without a likelihood to score by")
    check_images(model, "anomaly")
    inliers = reference_of(model, arguments.reference)
    if arguments.reference is None and inliers.url == model.config.data.url:
        raise ConfigError(
            f"{inliers.url} has no test split beside it: name images that the model was not "
            "trained on with --reference"
        )
    sets = {url: dataclasses.replace(inliers, url=url) for url in dict.fromkeys(arguments.outliers)}
    for data in (inliers, plain(model), *sets.values()):  # said before minutes go into the first
        _check_readable(data, arguments.n)
    inside = _scored(model, inliers, arguments)
    typical = float(_scored(model, plain(model), arguments).nll.mean())

    own = f"bits/dim of {inliers.url}"
    passport = _passport(model, inliers, inside, arguments)
    figures = {own: _mean(inside, passport)}
    header = ["bits/dim", *(f"AUROC {name}" for name in scores(inside, typical))]
    table = {
        f"{arguments.n} images of each set": header,
        inliers.url: [_number(figures[own]), "(inliers)"],
    }
    failures = []
    for url, data in sets.items():
        outside = _scored(model, data, arguments)
        found = _compared(url, inside, outside, typical, passport, arguments.seed)
        table[url] = [*map(_number, found.values())]
        raw = found[f"AUROC nll vs {url}"]
        if raw.value + 2 * (raw.spread or 0.0) < 0.5:
            failures.append(
                f"{url}: the model finds these outliers MORE likely than its own test images: "
                f"raw likelihood fails here (AUROC nll {raw.value:.3f} < 0.5)"
            )
        figures |= found
    width = max(map(len, table))
    lines = [f"{name:<{width}}" + "".join(f"{c:>20}" for c in row) for name, row in table.items()]
    print("\n".join([*lines, *failures, ""]))
    keep(figures, model)


def _passport(model: Model, inliers: DataConfig, inside: Scored, arguments: Namespace) -> Passport:
    return Passport(
        progress=model.samples,
        ema=model.ema,
        seeds=(arguments.seed,),
        samples=arguments.n,
        labels="mixture of all classes" if _classes(model) else None,
        reference=inliers.url,
        reference_fingerprint=_fingerprint(inliers.url),
        preprocessing=f"{inliers.fit} to {inliers.size} px",
        likelihood=inside.kind,
        dequantisation=inside.dequantisation,
    )


def _scored(model: Model, data: DataConfig, arguments: Namespace) -> Scored:
    batches = shuffled(
        data,
        arguments.n,
        batch=arguments.batch,
        device=device_of(arguments),
        seed=arguments.seed,
    )
    batches = (in_channels(batch, model.info.channels) for batch in batches)
    return score_images(model.objective, model.networks, batches, _classes(model))


def _classes(model: Model) -> int:
    """0 also where the data have classes and the model does not use them."""
    return int(getattr(model.objective, "classes", model.info.classes))


def in_channels(batch: Batch, channels: int) -> Batch:
    """The images with that many channels: grey repeated, or the luma of RGB, as Pillow's."""
    image = batch["image"]
    if image.shape[1] == channels:
        return batch
    if channels == 3:
        image = image.expand(-1, 3, -1, -1)
    else:
        red, green, blue = image.int().unbind(1)  # ITU-R 601 in 16-bit fixed point
        luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
        image = luma[:, None].to(torch.uint8)
    return dataclasses.replace(batch, fields={**batch.fields, "image": image})


def _check_readable(data: DataConfig, count: int) -> None:
    info = read_info(data)
    if "image" not in info.fields:
        raise ConfigError(f"{data.url} holds no images: its fields are {', '.join(info.fields)}")
    if not 2 <= count <= info.samples:
        raise ConfigError(f"--n {count}: take 2 to {info.samples}, all images of {data.url}")


def _fingerprint(url: str) -> str:
    return Manifest.load(datasets.resolve(url)).fingerprint()


def _compared(
    url: str, inside: Scored, outside: Scored, typical: float, passport: Passport, seed: int
) -> dict[str, Figure]:
    """Mean bits/dim of the outliers, and the AUROC of each score."""
    passport = dataclasses.replace(
        passport,
        reference_samples=len(inside.nll),
        outliers=url,
        outliers_fingerprint=_fingerprint(url),
    )
    figures = {f"bits/dim of {url}": _mean(outside, passport)}
    theirs = scores(outside, typical)
    for name, ours in scores(inside, typical).items():
        area, error = auroc(ours, theirs[name]), auroc_error(ours, theirs[name], seed=seed)
        figures[f"AUROC {name} vs {url}"] = Figure(
            area, error, "", passport, "bootstrap standard error"
        )
    return figures


def _mean(images: Scored, passport: Passport) -> Figure:
    error = float(images.nll.std() / len(images.nll) ** 0.5)
    return Figure(float(images.nll.mean()), error, "bits/dim", passport, "standard error")


def _number(figure: Figure) -> str:
    return f"{figure.value:.3f} +- {figure.spread:.3f}"
