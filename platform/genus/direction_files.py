"""Directions in W, kept in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from genus.atomic import replacing
from genus.latent_codes import identity, read_arrays
from genus.latent_directions import Direction
from genus.model import Model

SCHEMA = "genus-direction/1"
MAKER = "genus edit RUN --save FILE"


def save_direction(path: Path, model: Model, direction: Direction) -> None:
    """An .npz of ``vector`` (W,) float64 and ``about``: JSON of the model and the unit."""
    about = {
        "schema": SCHEMA,
        **identity(model),
        "name": direction.name,
        "unit": direction.unit,
        "unit_name": direction.unit_name,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        vector = direction.vector.double().cpu().numpy()
        np.savez_compressed(file, vector=vector, about=np.array(json.dumps(about)))


def load_direction(path: Path, model: Model) -> Direction:
    """ConfigError for what is no such file, or of other weights than the model's."""
    arrays = read_arrays(path, SCHEMA, MAKER, model)
    about = json.loads(str(arrays["about"]))
    device = next(model.networks["mapping"].parameters()).device
    vector = torch.from_numpy(arrays["vector"]).to(device)
    return Direction(about["name"], vector, about["unit"], about["unit_name"])
