"""Images pixel by pixel in raster order, from networks that give each one's distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.networks.pixelcnn.causal import Memory
from genus.objectives.logistic_mixture import PixelLaw, unit_of
from genus.samplers.categorical import choose


@torch.no_grad()
def sample_pixels(
    network: nn.Module,
    law: PixelLaw,
    draws: Draws,
    label: Tensor | None,
    *,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    classes: int = 0,
    guidance: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Levels (B, C, H, W) int64, one image a row of ``draws``.

    ``network(x, label, memory)`` is called once a pixel and computes that pixel alone: the memory
    has what it needs of the earlier ones (see ``networks/pixelcnn/causal.py``).

    A temperature T divides the log-probabilities of a channel's levels, and guidance w combines
    those with and without the class, log p + (w - 1) (log p - log p(no class)): both channel by
    channel, given the pixel's earlier channels as drawn, and for mixtures of logistics too on all
    levels' probabilities, so that nothing is said about parameters. T = 0 takes the most probable.
    """
    H, W = size
    guided = guidance != 1 and label is not None
    if guided:
        assert label is not None
        label = torch.cat([label, torch.full_like(label, classes)])
    uniforms = draws.uniform("pixels", (H, W, 1 + law.channels), torch.float64)
    levels = torch.zeros((len(draws), law.channels, H, W), dtype=torch.long, device=uniforms.device)
    x = torch.zeros(levels.shape, dtype=dtype, device=uniforms.device)
    memory = Memory()
    for i in range(H):
        for j in range(W):
            both = torch.cat([x, x]) if guided else x
            parameters = network(both, label, memory.at(i, j))[:, :, 0, 0]
            u = uniforms[:, i, j]
            if guided or temperature != 1:
                pixel = _by_channel(law, parameters, u, guidance if guided else 1.0, temperature)
            else:
                pixel = law.draw(parameters, u)
            levels[:, :, i, j] = pixel
            x[:, :, i, j] = unit_of(pixel, law.levels, dtype)
    return levels


def _by_channel(
    law: PixelLaw, parameters: Tensor, uniforms: Tensor, guidance: float, temperature: float
) -> Tensor:
    """One pixel (B, C) from parameters (B, O), or (2 B, O) with those of no class behind."""
    rows = len(uniforms)
    pixel = uniforms.new_zeros((rows, 0), dtype=torch.long)
    for c in range(law.channels):
        log_p = law.channel(parameters[:rows], pixel)
        if guidance != 1:
            log_p = log_p + (guidance - 1) * (log_p - law.channel(parameters[rows:], pixel))
        if temperature == 0:
            level = log_p.argmax(1)
        else:
            level = choose(log_p / temperature, uniforms[:, 1 + c])
        pixel = torch.cat([pixel, level[:, None]], dim=1)
    return pixel
