"""DPM-Solver++: exact in the linear part, multistep in the denoised image."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from genus.samplers.denoiser import Denoiser


def dpm_solver_pp_2m(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None
) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022b, Algorithm 2, with alpha = 1. One call a step.

    ``x`` (B, ...) at noise level ``sigmas[0]``; ``sigmas`` descending, (steps + 1,). Of first order
    are the first step, a step to 0 (h is infinite there, and the update is D itself), and any step
    more than twice as long as the one before, where extrapolating D would amplify its errors: the
    last steps of a DDPM's evenly spaced timesteps are such.
    """
    levels = sigmas.tolist()
    old: Tensor | None = None
    h_old = 0.0
    for sigma, following in pairwise(levels):
        denoised = denoiser(x, x.new_full((), sigma), label)
        D = denoised
        if following > 0:
            h = math.log(sigma / following)  # lambda = -ln sigma, h = its increment
            if old is not None and h <= 2 * h_old:
                r = h_old / h
                D = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
            old, h_old = denoised, h
        x = following / sigma * x + (1 - following / sigma) * D  # 1 - e^-h
    return x
