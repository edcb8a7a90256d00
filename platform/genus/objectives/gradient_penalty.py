"""Penalties on the slope of a network in its input: R1, R2, and their sharding-friendly estimate.

Mescheder et al. 2018, "Which training methods for GANs do actually converge?": R1 is
gamma/2 E |grad_x D(x)|^2 on real data (eq. 9), R2 the same on generated data (eq. 10).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genus.strategies.inner_gradient import weights_kept


def input_gradient(output: Tensor, inputs: Tensor, network: nn.Module) -> Tensor:
    """d sum(output) / d inputs, of the inputs' shape, that can be differentiated again.

    ``network`` is what made ``output``, as the loop hands it out.
    """
    with weights_kept(network):
        (gradient,) = torch.autograd.grad(output.sum(), inputs, create_graph=True)
    return gradient


def square_norm(x: Tensor) -> Tensor:
    """(B,) of (B, ...), in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().flatten(1).sum(1)


def finite_difference(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float
) -> Tensor:
    """(B,) estimates of |grad f(x)|^2 by one central difference each: no gradient in the loss.

    ((f(x + s u) - f(x - s u)) / 2s)^2 with u ~ N(0, I) has the expectation |grad f|^2 + O(s^2)
    (Hutchinson), and the relative standard deviation sqrt(2). ``direction`` is u, of x's shape;
    ``step`` is s, in the unit of x. Both values come from one call of ``function``.
    """
    moved = torch.cat([x + step * direction, x - step * direction])
    above, below = function(moved).chunk(2)
    return ((above - below) / (2 * step)).square()
