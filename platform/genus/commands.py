"""What the ``genus`` subcommands do with a run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genus.checkpoint_reader import published
from genus.data import datasets
from genus.data.batch import Batch
from genus.data.manifest import Manifest
from genus.data.stream import DataConfig, iterate_once
from genus.errors import ConfigError
from genus.evaluate.curves import save_curves
from genus.evaluate.features import efficientnet_lite0
from genus.evaluate.grid import save_grid
from genus.evaluate.measure import bits_per_dim, sample_quality
from genus.evaluate.passport import Figure, Passport, describe, read_evaluation, write_evaluation
from genus.model import Model, load_model
from genus.objectives.phase import CanLogDensity, CanSample, LogDensity, SampleOptions
from genus.provenance import recipe_of
from genus.samplers.likelihood import ODELikelihood
from genus.sampling import grid_columns, grid_labels, sample_batches
from genus.tracking import read_bad_samples, read_events, read_metrics


def sample(arguments: Namespace) -> None:
    """Draw samples into a PNG grid or an .npz with uint8 ``images`` (N, C, H, W) and ``labels``
    (-1: none)."""
    model, options = _model(arguments), _options(arguments)
    labels = _labels(model, arguments.n, arguments.label)
    images = torch.cat(list(_samples(model, arguments, labels, options)))
    if arguments.out.suffix == ".npz":
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        shown = np.full(len(images), -1) if labels is None else np.asarray(labels)
        np.savez_compressed(arguments.out, images=images.numpy(), labels=shown)
    else:
        columns = arguments.columns or grid_columns(model.info.classes)
        save_grid(images, arguments.out, columns)
    plan = model.objective.plan(options)
    print(f"{arguments.out}: {len(images)} samples, {plan}, ema {model.ema}")


def evaluate(arguments: Namespace) -> None:
    """Distances to the reference and bits/dim, printed and kept in RUN/evaluations/."""
    model, options = _model(arguments), _options(arguments)
    data = _reference(model, arguments.reference)
    reference = Manifest.load(datasets.resolve(data.url))
    figures: dict[str, Figure] = {}
    known: dict[str, Any] = {
        "progress": model.samples,
        "ema": model.ema,
        "seeds": (arguments.seed,),
        "reference": data.url,
        "reference_fingerprint": reference.fingerprint(),
    }
    if arguments.n and isinstance(model.objective, CanSample):
        labels = _labels(model, arguments.n, arguments.label)
        plan = model.objective.plan(options)
        passport = Passport(
            **known,
            sampler=plan.sampler,
            nfe=plan.nfe,
            guidance=plan.guidance,
            labels=_how(labels, arguments.label),
        )
        # Padding that all images share would shrink every distance: it is cut before the features.
        border = (model.info.resolution - reference.height) // 2 if data.fit == "pad" else 0
        figures |= sample_quality(
            _samples(model, arguments, labels, options),
            (batch["image"] for batch in iterate_once(data, 500)),
            efficientnet_lite0(border=max(0, border), device=_device(arguments)),
            passport,
            count=arguments.n,
            cache=datasets.data_root() / "features",
        )
    if arguments.trace is not None and hasattr(model.objective, "likelihood"):
        model.objective.likelihood = ODELikelihood(trace=arguments.trace)
    if arguments.likelihood and isinstance(model.objective, CanLogDensity):
        densities = _log_densities(model, data, arguments)
        passport = Passport(**known, labels="the test samples' own" if model.info.classes else None)
        figures["bits/dim"] = bits_per_dim(densities, passport)
    if not figures:
        raise ConfigError("nothing to measure: ask for --n samples or --likelihood images")
    name = f"{model.samples:012d}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    path = model.folder / "evaluations" / name
    write_evaluation(figures, path, _about(model))
    print(describe(figures))
    print(f"kept in {path}")


def list_runs(root: Path) -> None:
    """One line a run folder: progress, state, last loss, newest figures."""
    folders = sorted(path.parent for path in root.glob("*/config.json"))
    if not folders:
        print(f"no runs in {root}")
    for folder in folders:
        rows, state = read_metrics(folder), state_of(folder)
        rows = [row for row in rows if "step" in row]
        done = rows[-1]["samples"] if rows else 0
        total = json.loads((folder / "config.json").read_text())["train"]["samples"]
        losses = [
            f"{k} {v:.4f}" for k, v in (rows[-1] if rows else {}).items() if k.endswith("/loss")
        ]
        text = "  ".join([*losses, *_short(_last_figures(folder))])
        print(f"{folder.name:<28} {state:<9} {done:>13,}/{total:<13,} {text}")


def state_of(folder: Path) -> str:
    """finished, stopped (early but cleanly), failed, or open (running or killed)."""
    if (folder / "done").exists():
        return "finished"
    if (folder / "requeue").exists():
        return "stopped"
    events = [event["event"] for event in read_events(folder)[-2:]]
    return "failed" if events == ["fault", "closed"] else "open"


def curves(folder: Path, out: Path | None) -> None:
    """Losses, gradient norms and throughput over samples as one picture."""
    rows = [row for row in read_metrics(folder) if "step" in row]
    keys = [k for k in (rows[-1] if rows else {}) if k.endswith(("/loss", "/grad_norm"))]
    path = out or folder / "curves.png"
    save_curves(rows, path, [*keys, "samples_per_second"])
    print(f"{path}: {len(rows)} rows")


def show(folder: Path) -> None:
    """What a run reached, and where its pictures, figures and checkpoints lie."""
    recipe = recipe_of(folder)
    rows = [row for row in read_metrics(folder) if "step" in row]
    grids = sorted((folder / "samples").glob("*.png"))
    print(f"\n{folder}: {recipe.name}, {state_of(folder)}")
    if rows:
        losses = ", ".join(f"{k} {v:.4f}" for k, v in rows[-1].items() if k.endswith("/loss"))
        print(
            f"  reached      {rows[-1]['samples']:,} samples, {rows[-1]['step']:,} steps, {losses}"
        )
    print(
        f"  figures      {'  '.join(_short(_last_figures(folder))) or 'none yet: genus evaluate'}"
    )
    bad = read_bad_samples(folder)
    if bad:
        lost = sum(row["count"] for row in bad)
        print(f"  bad samples  {lost:,}, others stood in: {folder / 'bad-samples'}")
    pictures = [*grids[-1:], *sorted(folder.glob("samples*.png")), folder / "curves.png"]
    for path in pictures:
        if path.exists():
            print(f"  picture      {path}")
    for path in published(folder / "checkpoints")[-1:]:
        print(f"  checkpoint   {path}")


# ---- helpers -------------------------------------------------------------------------------------


def _device(arguments: Namespace) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if str(arguments.device).startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: this machine has none, or torch was built without it")
    return torch.device(arguments.device or ("cuda" if has_cuda else "cpu"))


def _model(arguments: Namespace) -> Model:
    if torch.get_num_threads() == 1:  # OMP_NUM_THREADS=1 is meant for several processes
        torch.set_num_threads(os.cpu_count() or 1)
    return load_model(arguments.folder, arguments.ema, _device(arguments))


def _options(arguments: Namespace) -> SampleOptions:
    guide = None
    if arguments.guide is not None:
        guide = load_model(arguments.guide, arguments.guide_ema, _device(arguments)).networks
    return SampleOptions(
        steps=arguments.steps,
        guidance=arguments.guidance,
        method=arguments.method,
        guide=guide,
    )


def _labels(model: Model, count: int, label: int | None) -> list[int] | None:
    classes = model.info.classes
    if label is None:
        return grid_labels(count, classes)
    if not 0 <= label < classes:
        raise ConfigError(f"--class {label}: this model has classes 0 to {classes - 1}")
    return [label] * count


def _how(labels: list[int] | None, label: int | None) -> str | None:
    if labels is None:
        return None
    return "all classes in turn" if label is None else f"class {label} only"


def _samples(
    model: Model, arguments: Namespace, labels: list[int] | None, options: SampleOptions
) -> Iterator[Tensor]:
    batches = sample_batches(
        model.objective,
        model.networks,
        range(arguments.n),
        labels,
        seed=arguments.seed,
        device=_device(arguments),
        options=options,
        batch=arguments.batch,
    )
    for images in batches:
        yield images.cpu()


def _log_densities(model: Model, data: DataConfig, arguments: Namespace) -> Iterator[LogDensity]:
    batches: Iterator[Batch] = iterate_once(
        data,
        arguments.batch,
        limit=arguments.likelihood,
        device=_device(arguments),
        seed=arguments.seed,
    )
    for batch in batches:
        yield model.objective.log_density(model.networks, batch)


def _reference(model: Model, url: str | None) -> DataConfig:
    """The run's data config on the asked set; else on the test split beside its own, if any."""
    data: DataConfig = model.config.data
    test = f"{data.url}/test"
    if url is None:
        has_test = data.url in datasets.BUILT_IN or (Path(test) / "manifest.json").exists()
        url = test if has_test else data.url
    return dataclasses.replace(
        data, url=url, also=(), weights=(), size=model.info.resolution, bucket_step=0, flip=False
    )


def _about(model: Model) -> dict[str, Any]:
    return {
        "name": model.folder.name,
        "recipe": recipe_of(model.folder).name,
        "traits": dataclasses.asdict(model.objective.traits),
        "parameters": {
            name: sum(p.numel() for p in network.parameters())
            for name, network in model.networks.items()
        },
        "checkpoint": model.checkpoint,
    }


def _last_figures(folder: Path) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for path in sorted((folder / "evaluations").glob("*.json")):
        found |= read_evaluation(path)[0]
    return found


def _short(figures: dict[str, Figure]) -> list[str]:
    """Figures in a line, each group with the gist of its passport."""
    parts = []
    for passport in dict.fromkeys(figure.passport for figure in figures.values()):
        group = [f"{n} {_value(f)}" for n, f in figures.items() if f.passport == passport]
        gist = [f"n={passport.samples}", passport.sampler or passport.likelihood or ""]
        gist += [f"ema {passport.ema}", f"against {passport.reference}"]
        parts.append(f"{', '.join(group)} [{', '.join(g for g in gist if g)}]")
    return parts


def _value(figure: Figure) -> str:
    spread = f" +- {figure.spread:.2g}" if figure.spread is not None else ""
    return f"{figure.value:.4g}{spread} {figure.unit}".rstrip()
