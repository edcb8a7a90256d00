"""``genus evaluate``: sample quality, answers, likelihood and round trip of a trained model."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genus.answering import answered, copied, most_similar
from genus.arguments import (
    check_class,
    device_of,
    labels_of,
    model_of,
    options_of,
    plain,
    reference_of,
    samples_of,
)
from genus.data.batch import Batch
from genus.data.datasets import tokenizer_of
from genus.data.opening import read_info
from genus.data.stream import DataConfig, iterate_once
from genus.data.text import Tokenizer
from genus.errors import ConfigError, DataError
from genus.evaluate.answers import answer_figures, check_possible
from genus.evaluate.kept import keep
from genus.evaluate.measure import likelihood_figure
from genus.evaluate.passport import Figure, Passport
from genus.evaluate.real_data import RealData
from genus.evaluate.round_trip import round_trip_figures
from genus.model import Model, in_double
from genus.objectives.phase import (
    CanEncode,
    CanLogDensity,
    CanSample,
    CanTranslate,
    LogDensity,
)
from genus.round_trip import round_trip
from genus.samplers.likelihood import ODELikelihood

SAMPLES, ROUND_TRIPS = 2000, 500
"""Where the command leaves it open."""


def evaluate(arguments: Namespace) -> None:
    """Distances to the reference, likelihood and round trip, printed and kept in
    RUN/evaluations/."""
    model = model_of(arguments)
    data = reference_of(model, arguments.reference)
    real = RealData(data, device_of(arguments))
    if arguments.double and model.objective.traits.density != "exact":
        raise ConfigError(
            f"--double is for exact densities, and this model's is of the kind "
            f"'{model.objective.traits.density}': float64 would not make it exact"
        )
    known: dict[str, Any] = {
        "progress": model.samples,
        "ema": model.ema,
        "seeds": (arguments.seed,),
        **real.known,
    }
    if isinstance(model.objective, CanTranslate):
        figures = _answers(model, data, arguments, known)
    else:
        figures = _quality(model, real, arguments, known)
    networks = model.networks
    if arguments.double:
        networks, known["precision"] = in_double(networks), "float64"
    if arguments.trace is not None and hasattr(model.objective, "likelihood"):
        model.objective.likelihood = ODELikelihood(trace=arguments.trace)
    known["labels"] = "the test samples' own" if model.info.classes else None
    count = arguments.likelihood
    if count is None:  # of images it takes long
        is_slow = model.info.resolution and not model.info.target_length
        count = 0 if is_slow else sys.maxsize
    if count and isinstance(model.objective, CanLogDensity):
        tokenizer = _tokenizer(model) if model.info.length else None
        scored = _log_densities(model, networks, _batches(data, count, arguments), tokenizer)
        for densities in zip(*scored, strict=True):
            name, figure = likelihood_figure(densities, Passport(**known))
            figures[name] = figure
    is_exact = model.objective.traits.latent.startswith("exact")
    if is_exact and isinstance(model.objective, CanEncode):
        batches = _batches(data, count or ROUND_TRIPS, arguments)
        errors = (round_trip(model.objective, networks, batch) for batch in batches)
        is_image = bool(model.info.resolution)
        figures |= round_trip_figures(errors, Passport(**known), levels=is_image)
    if not figures:
        raise ConfigError("nothing to measure: ask for --n samples or --likelihood images")
    keep(figures, model)


def _quality(
    model: Model, real: RealData, arguments: Namespace, known: Mapping[str, Any]
) -> dict[str, Figure]:
    """Of images the distances to real ones, of data with known modes how many are covered."""
    count, is_image = arguments.n, bool(model.info.resolution)
    if count == 0 or not isinstance(model.objective, CanSample):
        return {}
    if not is_image and not real.has_modes:
        if count is None:
            return {}
        raise ConfigError(
            "--n: features need images, and this run's data are none, nor have they known modes: "
            "leave it out"
        )
    images = (count or SAMPLES) if is_image else 0
    count = max(images, count or real.counter.samples) if real.has_modes else images
    options = options_of(arguments)
    plan = model.objective.plan(options)
    labels = labels_of(model, count, arguments.label)
    passport = Passport(
        **known,
        sampler=plan.sampler,
        nfe=plan.nfe,
        guidance=plan.guidance,
        labels=_how(labels, arguments.label),
    )
    drawn: Iterable[Tensor] = samples_of(model, arguments, labels, count, options)
    if not real.has_modes:
        return real.distances(drawn, passport, count, count)
    drawn = [*drawn]
    figures = real.modes(drawn, passport) | real.own_modes(count)
    return figures | (real.distances(drawn, passport, images, images) if images else {})


def _how(labels: list[int] | None, label: int | None) -> str | None:
    if labels is None:
        return None
    return "all classes in turn" if label is None else f"class {label} only"


def _batches(data: DataConfig, count: int, arguments: Namespace) -> Iterator[Batch]:
    return iterate_once(
        data,
        arguments.batch,
        limit=count,
        device=device_of(arguments),
        seed=arguments.seed,
    )


def _log_densities(
    model: Model,
    networks: Mapping[str, nn.Module],
    batches: Iterator[Batch],
    tokenizer: Tokenizer | None,
) -> Iterator[list[LogDensity]]:
    """Of each batch, in every unit that it has: of text also a character and a byte."""
    for batch in batches:
        with torch.no_grad():
            density: LogDensity = model.objective.log_density(networks, batch)
        same = [density]
        if tokenizer is not None:
            sizes = [tokenizer.size_of(row.numpy()) for row in batch["tokens"][:, 1:].cpu()]
            characters, octets = torch.tensor(sizes).T
            same.append(replace(density, unit="bits/char", counts=characters))
            same.append(replace(density, unit="bits/byte", counts=octets))
        yield same


def _tokenizer(model: Model) -> Tokenizer | None:
    try:
        return tokenizer_of(model.config.data.url)
    except DataError as error:
        print(f"no bits a character or byte: {error}")
        return None


def _answers(
    model: Model, data: DataConfig, arguments: Namespace, known: Mapping[str, Any]
) -> dict[str, Figure]:
    """The model's answers and the baselines'."""
    options, info = options_of(arguments), model.info
    plan = model.objective.plan(options)
    if arguments.label is not None:
        check_class(model, arguments.label)
    tokenizer, count = tokenizer_of(model.config.data.url), arguments.n or sys.maxsize
    check_possible(min(count, read_info(data).samples))
    batches = _batches(data, count, arguments)
    found = answered(model.objective, model.networks, batches, tokenizer, options)
    passport = Passport(**known, sampler=plan.sampler, nfe=plan.nfe)
    figures = answer_figures(found, passport)
    fixed = {name: known[name] for name in ("reference", "reference_fingerprint")}
    if info.has_one_tokenizer:
        passport = Passport(**fixed, sampler="the source itself")
        figures |= answer_figures(copied(data, count, tokenizer), passport, name="of copies")
    same = most_similar(plain(model), data, count, tokenizer, info.source_vocabulary)
    passport = Passport(**fixed, sampler="the target of the most similar training source")
    return figures | answer_figures(same, passport, name="of the nearest")
