"""The documentation's example family is real: its code blocks run as they stand on the page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch

from genus.checkpoint_reader import newest, read_tensors
from genus.data.stream import DataConfig, iterate_once
from genus.tracking import read_metrics
from launching import BIN, ROOT, run

DATA = ROOT / "tests" / "data" / "fashion-1000"


def write_blocks(folder: Path) -> None:
    page = (ROOT / "docs" / "adding-a-family.md").read_text()
    blocks = re.findall(r"```python file=(\S+)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in blocks] == ["ppca.py", "recipe.py"]
    for name, code in blocks:
        (folder / name).write_text(code)


def test_the_example_trains_to_the_closed_form_maximum_and_serves_every_command(
    tmp_path: Path,
) -> None:
    import sys

    write_blocks(tmp_path)
    recipe = [sys.executable, str(tmp_path / "recipe.py"), f"data.url={DATA}", "run.name=ppca"]
    off = ["tracking.wandb=off", "optim.schedule.kind=cosine"]
    run([*recipe, *off], tmp_path)
    folder = tmp_path / "runs" / "ppca"

    # Tipping & Bishop 1999: the maximum likelihood with K latents leaves the mean of the D - K
    # smallest eigenvalues as sigma^2 (eq. 8); the log-likelihood follows from the eigenvalues.
    images = next(iterate_once(DataConfig(url=str(DATA), size=8, fit="resize"), 1000))["image"]
    x = images.double().flatten(1) / 127.5 - 1
    D, K = x.shape[1], 8
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    sigma2 = eigenvalues[K:].mean()
    log_det = eigenvalues[:K].log().sum() + (D - K) * sigma2.log()
    best = 0.5 * (D * math.log(2 * math.pi) + log_det + D) / D

    ema = read_tensors(newest(folder), "ema/0.050/")
    W, mu, log_sigma = (ema[f"model.{key}"].double() for key in ("W", "mu", "log_sigma"))
    C = W @ W.T + torch.exp(2 * log_sigma) * torch.eye(D, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mu, C)
    reached = -normal.log_prob(x).mean() / D
    assert 0 <= reached - best < 0.02 * abs(best) + 0.005, (float(reached), float(best))
    assert read_metrics(folder)[-1]["samples"] == 100_000

    run([str(BIN / "genus"), "sample", str(folder), "--n", "16", "--out", "grid.png"], tmp_path)
    assert (tmp_path / "grid.png").stat().st_size > 0
    genus = [str(BIN / "genus"), "evaluate", str(folder), "--n", "0", "--likelihood", "200"]
    text = run([*genus, "--reference", str(DATA)], tmp_path)
    assert "bits/dim" in text
    assert "exact" in text
    evaluation = json.loads(next((folder / "evaluations").glob("*.json")).read_text())
    # uniform dequantisation adds to each dimension what its own level's noise costs: the figure is
    # near the density of the levels' centres, in bits of a scale where 128 levels are one unit
    centres = -normal.log_prob((images[:200].double().flatten(1) + 0.5) / 128 - 1).mean() / D
    bits = evaluation["figures"]["bits/dim"]["value"]
    assert abs(bits - (centres / math.log(2) + 7)) < 0.05
