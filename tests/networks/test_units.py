"""The repeated parts of the networks, and working them out again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genus.networks.dit import DiTConfig
from genus.networks.flows.flow import build_flow
from genus.networks.flows.image import GlowConfig, RealNVPConfig
from genus.networks.flows.tarflow import TarFlowConfig
from genus.networks.pixelcnn.plus_plus import PixelCNNPlusPlusConfig
from genus.networks.transformer.encoder_decoder import EncoderDecoderConfig
from genus.networks.unet import UNetConfig
from genus.networks.units import recompute, units_of

DIT = DiTConfig(width=32, depth=3, heads=2)
NETWORKS = {
    "dit": (lambda: DIT.build(channels=1, resolution=8), 3),
    "unet": (
        lambda: UNetConfig(channels=32, mults=(1, 2), blocks=2, attention=()).build(
            channels=1, resolution=8
        ),
        # 2 levels x 2 blocks, a middle of 2, 2 levels x 3 blocks
        12,
    ),
    "encoder-decoder": (
        lambda: EncoderDecoderConfig(width=16, depth=2, heads=2).build(
            vocabulary=5, length=6, source_length=6, source_vocabulary=5
        ),
        4,
    ),
    "glow": (lambda: build_flow(GlowConfig(steps=2, levels=2, width=8), (1, 8, 8)), 2 * 2),
    "realnvp": (lambda: build_flow(RealNVPConfig(levels=1, width=8, blocks=2), (1, 8, 8)), 4 * 2),
    "tarflow": (lambda: build_flow(TarFlowConfig(width=64, blocks=2, layers=3), (1, 8, 8)), 2 * 3),
    "pixelcnn++": (
        lambda: PixelCNNPlusPlusConfig(width=8, blocks=1, levels=1).build(
            channels=1, resolution=8, outputs=10
        ),
        4,
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_units_are_the_blocks_and_none_holds_another(kind: str) -> None:
    make, count = NETWORKS[kind]
    network = make()
    units = units_of(network)
    assert len(units) == count, list(units)
    inside = [id(part) for unit in units.values() for part in unit.modules()]
    assert len(inside) == len(set(inside))
    share = sum(p.numel() for u in units.values() for p in u.parameters())
    assert share > 0.2 * sum(p.numel() for p in network.parameters())


def test_what_has_no_blocks_has_no_units() -> None:
    assert units_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == {}
    assert units_of(nn.ModuleList([nn.Linear(2, 2)])) == {}


def test_recomputing_changes_no_gradient_and_keeps_less() -> None:
    def gradients(again: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        network = DIT.build(channels=1, resolution=8)
        for p in network.parameters():
            nn.init.normal_(p, std=0.1)
        if again:
            recompute(network)
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(torch.ones(2, 1, 8, 8), torch.ones(2), None).square().mean()
        in_forward = kept
        loss.backward()
        return [p.grad for p in network.parameters() if p.grad is not None], in_forward

    (plain, all_of_it), (again, inputs) = gradients(False), gradients(True)
    assert len(plain) == len(again) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert inputs < all_of_it / 2
