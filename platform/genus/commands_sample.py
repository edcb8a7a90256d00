"""``genus sample``: images, vectors or texts drawn from a trained model."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genus.arguments import labels_of, model_of, options_of, samples_of
from genus.atomic import replacing
from genus.data.datasets import tokenizer_of
from genus.errors import ConfigError
from genus.evaluate.grid import save_grid
from genus.model import Model
from genus.objectives.phase import CanSample, SampleOptions
from genus.sampling import grid_columns
from genus.text_samples import prompt_of
from genus.tracking import BETWEEN_TEXTS


def sample(arguments: Namespace) -> None:
    """Images: a PNG grid, or an .npz of uint8 ``images`` (N, C, H, W). Vectors: a PNG scatter plot,
    or an .npz of float32 ``vectors`` (N, D). With ``labels`` (-1: none). Text: shown, or a file.
    """
    model = model_of(arguments)
    if not isinstance(model.objective, CanSample):
        raise ConfigError(
            f"{model.folder} has a model that answers sources and draws nothing without one: use "
            "'genus translate'"
        )
    options = replace(options_of(arguments), length=arguments.length)
    if model.info.length:
        return _texts(model, arguments, options)
    if arguments.prompt:
        options = replace(options, prompt=torch.zeros(0))  # which the family refuses
    plan = model.objective.plan(options)  # refuses before anything is drawn
    count, out = arguments.n or 64, arguments.out or Path("samples.png")
    labels = labels_of(model, count, arguments.label)
    drawn = torch.cat(list(samples_of(model, arguments, labels, count, options)))
    if out.suffix == ".npz":
        _save_arrays(drawn, labels, out)
    elif drawn.ndim == 4:
        save_grid(drawn, out, arguments.columns or grid_columns(model.info.classes))
    else:
        from genus.evaluate.scatter import save_scatter

        save_scatter(drawn, out)
    print(f"{out}: {len(drawn)} samples, {plan}, ema {model.ema}")


def _save_arrays(drawn: Tensor, labels: list[int] | None, out: Path) -> None:
    shown = np.full(len(drawn), -1) if labels is None else np.asarray(labels)
    with replacing(out) as temporary, temporary.open("wb") as file:
        if drawn.ndim == 4:
            np.savez_compressed(file, images=drawn.numpy(), labels=shown)
        else:
            np.savez_compressed(file, vectors=drawn.numpy(), labels=shown)


def _texts(model: Model, arguments: Namespace, options: SampleOptions) -> None:
    """The prompt and what follows it."""
    tokenizer = tokenizer_of(model.config.data.url)
    prompt = prompt_of(tokenizer, arguments.prompt)
    options = replace(options, prompt=prompt)
    plan, count = model.objective.plan(options), arguments.n or 1
    begun = tokenizer.decode(prompt.tolist()) if arguments.prompt else ""
    texts = [
        begun + tokenizer.decode(row.tolist())
        for rows in samples_of(model, arguments, None, count, options)
        for row in rows
    ]
    joined = BETWEEN_TEXTS.join(texts) + "\n"
    if arguments.out is None:
        print(joined)
        return
    with replacing(arguments.out) as temporary:
        temporary.write_text(joined)
    print(f"{arguments.out}: {count} samples, {plan}, ema {model.ema}")
