"""What the ``genus`` subcommands do with a run folder: sample, runs, curves, show.

``commands_evaluate``, ``commands_interpolate`` and ``commands_anomaly`` hold the others.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from genus.arguments import labels_of, model_of, options_of, samples_of
from genus.atomic import replacing
from genus.checkpoint_reader import published
from genus.evaluate.curves import save_curves
from genus.evaluate.grid import save_grid
from genus.evaluate.kept import last_figures, short
from genus.provenance import recipe_of
from genus.sampling import grid_columns
from genus.tracking import read_bad_samples, read_events, read_metrics


def sample(arguments: Namespace) -> None:
    """Draw samples into a picture or an .npz with ``labels`` (-1: none).

    Images: a PNG grid, or uint8 ``images`` (N, C, H, W); vectors: a PNG scatter plot, or float32
    ``vectors`` (N, D).
    """
    model, options = model_of(arguments), options_of(arguments)
    plan = model.objective.plan(options)  # refuses before anything is drawn
    labels = labels_of(model, arguments.n, arguments.label)
    drawn = torch.cat(list(samples_of(model, arguments, labels, arguments.n, options)))
    is_image = drawn.ndim == 4
    if arguments.out.suffix == ".npz":
        shown = np.full(len(drawn), -1) if labels is None else np.asarray(labels)
        with replacing(arguments.out) as temporary, temporary.open("wb") as file:
            if is_image:
                np.savez_compressed(file, images=drawn.numpy(), labels=shown)
            else:
                np.savez_compressed(file, vectors=drawn.numpy(), labels=shown)
    elif is_image:
        columns = arguments.columns or grid_columns(model.info.classes)
        save_grid(drawn, arguments.out, columns)
    else:
        from genus.evaluate.scatter import save_scatter

        save_scatter(drawn, arguments.out)
    print(f"{arguments.out}: {len(drawn)} samples, {plan}, ema {model.ema}")


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
        text = "  ".join([*losses, *short(last_figures(folder))])
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
    print(f"  figures      {'  '.join(short(last_figures(folder))) or 'none yet: genus evaluate'}")
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
