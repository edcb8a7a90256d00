"""diffusers' networks, their weights in ours: the same outputs and gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genus.networks.dit import DiT, DiTConfig
from genus.networks.unet import UNet, UNetConfig

diffusers = pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from diffusers_weights import dit_weights, tie_embeddings, unet_weights  # noqa: E402

CLASSES = 5


def unets(dtype: torch.dtype) -> tuple[UNet, diffusers.UNet2DModel]:
    torch.manual_seed(0)
    peer = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=CLASSES + 1,
    )
    config = UNetConfig(
        channels=32, mults=(1, 2, 2), blocks=2, attention=(8, 4), head_channels=16, style="ddpm"
    )
    ours = config.build(channels=3, resolution=16, classes=CLASSES)
    ours.load_state_dict(unet_weights(peer))
    return ours.to(dtype), peer.to(dtype)


def dits(dtype: torch.dtype) -> tuple[DiT, diffusers.DiTTransformer2DModel]:
    torch.manual_seed(0)
    peer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=3,
        out_channels=6,
        num_layers=3,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # the published DiT's; diffusers' default is 1e-5
    )
    tie_embeddings(peer)
    config = DiTConfig(width=64, depth=3, heads=4, patch=2)
    ours = DiT(
        config, channels=3, resolution=16, classes=CLASSES, out_channels=6, frequency_shift=1
    )
    ours.load_state_dict(dit_weights(peer))
    return ours.to(dtype), peer.to(dtype)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 16, 16, generator=generator, dtype=dtype)
    return x, torch.tensor([0.0, 17.5, 999.0]), torch.tensor([0, 3, CLASSES])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("pair", [unets, dits])
def test_same_outputs(pair: object, dtype: torch.dtype, atol: float) -> None:
    ours, peer = pair(dtype)  # type: ignore[operator]
    x, t, label = inputs(dtype)
    with torch.no_grad():
        expected = peer(x, t, class_labels=label).sample
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(ours(x, t, label), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("pair", [unets, dits])
def test_same_gradients(pair: object) -> None:
    ours, peer = pair(torch.float64)  # type: ignore[operator]
    x, t, label = inputs(torch.float64)
    ours(x, t, label).square().mean().backward()
    peer(x, t, class_labels=label).sample.square().mean().backward()
    mine = sum(p.grad.square().sum() for p in ours.parameters())
    theirs = sum(p.grad.square().sum() for p in peer.parameters() if p.grad is not None)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)


def test_unequal_configurations_are_refused() -> None:
    _, peer = unets(torch.float32)
    with pytest.raises(ValueError, match="differs from block 0"):
        dit_weights(
            diffusers.DiTTransformer2DModel(
                num_attention_heads=2, attention_head_dim=8, num_layers=2, num_embeds_ada_norm=3
            )
        )
    small = UNetConfig(channels=32, mults=(1, 2), blocks=2, attention=(8,), style="ddpm")
    with pytest.raises(RuntimeError, match=r"decoder\.2"):
        small.build(channels=3, resolution=16, classes=CLASSES).load_state_dict(unet_weights(peer))
