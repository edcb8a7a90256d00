"""Products in float8, by torchao, for GPUs that have them (Micikevicius et al. 2022).

The matrices inside a network's blocks are multiplied in e4m3, their gradients in e5m2, each tensor
scaled by its own largest number; weights, gradients and moments stay in float32, and everything
else is as under bf16. Embeddings, heads and what is no multiple of 16 keep bf16's products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from genus.networks.units import units_of


def to_float8(networks: Mapping[str, nn.Module], emulate: bool = False) -> int:
    """Exchange the linear layers of every unit; returns how many. Names and parameters stay.

    ``emulate`` rounds to float8 and multiplies in float32, for machines without such products.
    """
    from torchao.float8 import (
        Float8LinearConfig,
        convert_to_float8_training,
    )

    count = 0

    def is_ours(module: nn.Module, name: str) -> bool:
        nonlocal count
        fits = isinstance(module, nn.Linear) and not any(n % 16 for n in module.weight.shape)
        count += fits
        return fits

    config = replace(Float8LinearConfig(), emulate=emulate)
    for network in networks.values():
        for unit in units_of(network).values():
            convert_to_float8_training(unit, config=config, module_filter_fn=is_ours)
    return count
