"""What the ``genus`` subcommands tell of a run folder: curves, show.

``commands_sample``, ``_evaluate``, ``_interpolate`` and ``_anomaly`` hold those that need a model.
"""

from __future__ import annotations

from pathlib import Path

from genus.checkpoint_reader import published
from genus.commands_runs import state_of
from genus.evaluate.curves import save_curves
from genus.evaluate.kept import last_figures, short
from genus.provenance import recipe_of
from genus.tracking import read_bad_samples, read_metrics


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
