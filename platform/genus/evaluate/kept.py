"""The figures of a run: printed, kept in RUN/evaluations/, and read again for one line."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from genus.evaluate.passport import Figure, describe, read_evaluation, write_evaluation
from genus.model import Model
from genus.provenance import recipe_of


def keep(figures: Mapping[str, Figure], model: Model) -> None:
    """Write them to the run's folder, and print them and where they are."""
    name = f"{model.samples:012d}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    path = model.folder / "evaluations" / name
    about = _about(model.folder, model.objective, parameters_of(model.networks), model.checkpoint)
    write_evaluation(figures, path, about)
    print(describe(figures))
    print(f"kept in {path}")


def keep_in_training(
    figures: Mapping[str, Figure],
    folder: Path,
    samples: int,
    objective: Any,
    parameters: Mapping[str, int],
) -> str:
    """Write figures that a run has measured of itself at ``samples`` of progress. Returns the file,
    relative to the run's folder; those of ``genus evaluate`` at the same progress are newer."""
    name = f"evaluations/{samples:012d}-0-in-training.json"
    write_evaluation(figures, folder / name, _about(folder, objective, parameters, ""))
    return name


def parameters_of(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """How many numbers each network has."""
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}


def last_figures(folder: Path) -> dict[str, Figure]:
    """The newest figure of each name."""
    found: dict[str, Figure] = {}
    for path in sorted((folder / "evaluations").glob("*.json")):
        found |= read_evaluation(path)[0]
    return found


def short(figures: Mapping[str, Figure]) -> list[str]:
    """Figures in a line, each group with the gist of its passport."""
    parts = []
    for passport in dict.fromkeys(figure.passport for figure in figures.values()):
        group = [f"{n} {_value(f)}" for n, f in figures.items() if f.passport == passport]
        gist = [f"n={passport.samples}", passport.sampler or passport.likelihood or ""]
        gist += [passport.precision or "", f"ema {passport.ema}" if passport.ema else ""]
        gist += [f"against {passport.reference}"]
        parts.append(f"{', '.join(group)} [{', '.join(g for g in gist if g)}]")
    return parts


def _about(
    folder: Path, objective: Any, parameters: Mapping[str, int], checkpoint: str
) -> dict[str, Any]:
    return {
        "name": folder.name,
        "recipe": recipe_of(folder).name,
        "traits": dataclasses.asdict(objective.traits),
        "parameters": dict(parameters),
        "checkpoint": checkpoint,
    }


def _value(figure: Figure) -> str:
    spread = f" +- {figure.spread:.2g}" if figure.spread is not None else ""
    return f"{figure.value:.4g}{spread} {figure.unit}".rstrip()
