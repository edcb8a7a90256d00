"""Gradients inside a loss, which is differentiated in its turn: what shards must hold still for.

FSDP2 and ZeRO-3 let a block's weights go when a backward pass is through it, and the second pass,
through the first one's operations, still needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule

_KEPT = -1
"""An entry in ZeRO-3's list of the modules that are using a parameter: no module has this number,
so none will strike it out."""


@contextmanager
def weights_kept(network: nn.Module) -> Iterator[None]:
    """Around a gradient that will be differentiated again: the weights that it gathers stay until
    the loss's own backward is through."""
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_backward(False, recurse=False)
    for parameter in network.parameters():
        if hasattr(parameter, "ds_active_sub_modules"):
            parameter.ds_active_sub_modules.add(_KEPT)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_backward(True, recurse=False)


def are_kept(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether ZeRO-3 was told to keep some of them."""
    return any(_KEPT in getattr(p, "ds_active_sub_modules", ()) for p in parameters)
