"""Ways from one latent code to another."""

from __future__ import annotations

import torch
from torch import Tensor


def straight(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """(P, ...) and (P, ...) -> (P, steps, ...): (1 - t) a + t b, t from 0 to 1, ends included."""
    t = _fractions(a, steps)
    return (1 - t) * a[:, None] + t * b[:, None]


def great_circle(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """(P, ...) and (P, ...) -> (P, steps, ...): the direction turns at a constant rate in the plane
    of both, and the length goes linearly from one's to the other's.

    Codes of a normal base in many dimensions D lie near the sphere of radius sqrt(D); halfway of a
    straight line between two of them the length is less by a factor of sqrt(2), which no sample has
    (White 2016, arXiv:1609.04468). Opposite codes have no plane: their way is straight.
    """
    dtype, a, b = a.dtype, a.double(), b.double()
    t = _fractions(a, steps)
    length_a, length_b = _length(a), _length(b)
    unit_a, unit_b = a / length_a, b / length_b
    # Kahan's: exact for small angles too, where the arc cosine is not
    angle = 2 * torch.atan2(_norm(unit_a - unit_b), _norm(unit_a + unit_b))[:, None]
    sine = angle.sin()
    flat = sine < 1e-6  # the same direction, or opposite ones
    sine = torch.where(flat, 1.0, sine)
    weight_a = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)
    weight_b = torch.where(flat, t, (t * angle).sin() / sine)
    length = (1 - t) * length_a[:, None] + t * length_b[:, None]
    return (length * (weight_a * unit_a[:, None] + weight_b * unit_b[:, None])).to(dtype)


def _fractions(a: Tensor, steps: int) -> Tensor:
    """(1, steps, 1, ...), as many dimensions as a way has."""
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)
    return t.view(1, steps, *[1] * (a.ndim - 1))


def _norm(a: Tensor) -> Tensor:
    """(P, 1, ...), with as many dimensions as ``a``."""
    norm: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1)
    return norm.view(-1, *[1] * (a.ndim - 1))


def _length(a: Tensor) -> Tensor:
    """The norm, and 1 for a code of zeros."""
    norm = _norm(a)
    return torch.where(norm == 0, 1.0, norm)
