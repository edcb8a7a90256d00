"""normflows' weights in our networks: for the tests and the side-by-side benchmarks."""

from __future__ import annotations

import normflows
import torch
from torch import Tensor, nn

from genus.networks.flows.bijection import Bijection
from genus.networks.flows.conditioners import ConvNet
from genus.networks.flows.coupling import Coupling
from genus.networks.flows.linear import ActNorm, InvertibleLinear


def peer_glow(steps: int, levels: int, width: int) -> normflows.MultiscaleFlow:
    """normflows' multi-scale Glow on 3 x 32 x 32 as in its example, without classes.

    The same as ``GlowConfig`` with ``learned_prior=False``, but for a base with a mean and a scale
    a channel, which start at N(0, 1).
    """
    bases, flows, merges = [], [], []
    for level in range(levels):  # from the deepest on
        channels = 3 * 2 ** (levels + 1 - level)
        blocks = [normflows.flows.GlowBlock(channels, width) for _ in range(steps)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        if level > 0:
            merges.append(normflows.flows.Merge())
        side = 32 // 2 ** (levels - level)
        bases.append(
            normflows.distributions.GlowBase((channels // (1 if level == 0 else 2), side, side))
        )
    return normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)


@torch.no_grad()
def copy_glow(peer: normflows.MultiscaleFlow, ours: Bijection) -> None:
    """The peer's weights into ours of the same configuration; ValueError where they don't fit."""
    theirs = [
        block
        for flows in reversed(peer.flows)  # its levels begin at the latents, and so do its blocks
        for block in reversed(flows)
        if isinstance(block, normflows.flows.GlowBlock)
    ]
    norms, linears, couplings = (
        [module for module in ours.modules() if isinstance(module, kind)]
        for kind in (ActNorm, InvertibleLinear, Coupling)
    )
    for norm, linear, coupling, block in zip(norms, linears, couplings, theirs, strict=True):
        assert isinstance(norm, ActNorm)
        assert isinstance(linear, InvertibleLinear)
        assert isinstance(coupling, Coupling)
        peer_coupling, peer_linear, peer_norm = block.flows
        norm.bias.copy_(-peer_norm.t.flatten())  # its direction is from latents to data
        norm.log_scale.copy_(-peer_norm.s.flatten())
        linear.permutation.copy_(peer_linear.P)
        linear.sign.copy_(peer_linear.sign_S)
        linear.lower.copy_(peer_linear.L)
        linear.upper.copy_(peer_linear.U)
        linear.log_s.copy_(peer_linear.log_S)
        net = coupling.conditioner
        assert isinstance(net, ConvNet)
        convolutions = [m for m in peer_coupling.modules() if isinstance(m, nn.Conv2d)]
        for layer, other in zip((net.first, net.middle, net.last), convolutions, strict=True):
            is_last = layer is net.last
            for kind in ("weight", "bias"):
                value = getattr(other, kind)
                getattr(layer, kind).copy_(_scale_first(value) if is_last else value)


def _scale_first(value: Tensor) -> Tensor:
    """(2 C, ...) -> (2 C, ...): a channel's shift and raw scale in the other order. The peer
    computes (x - shift) sigmoid(scale + 2), ours (x + shift) sigmoid(scale + 2)."""
    shift, scale = value[0::2], value[1::2]
    return torch.stack([scale, -shift], dim=1).reshape(value.shape)
