"""FSDP2: every rank holds a share of each weight, gradient, moment and average.

torch's ``fully_shard`` gathers a block's weights when the block is called and lets them go after
it (Zhao et al. 2023). It is applied here, not by Accelerate, whose FSDP is DDP on a CPU and takes
one network a call. Weights, gradients and their sums stay in float32: bf16 is autocast's, exactly
as under DDP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from genus.errors import ConfigError
from genus.networks.units import units_of
from genus.objectives.phase import Phase
from genus.optim.muon import MatrixMuon
from genus.optim.state import OptimizerState
from genus.parallel import World
from genus.parts import Part
from genus.state import State, Stateful, take_all
from genus.strategies.data_parallel import DataParallel, exchanged, floating, sum_of_squares
from genus.strategies.parts import (
    LocalParameter,
    first_row,
    gathered,
    local,
    stored_as,
    whole_of,
)
from genus.strategies.spread import Layout, Optim


class FullySharded(DataParallel):
    """FSDP2 over all ranks, or over groups of ``replicas`` copies (hybrid; see ``Spread``)."""

    def __init__(
        self,
        world: World,
        networks: Mapping[str, nn.Module],
        optim: Optim,
        clip: float,
        phases: Sequence[Phase] = (),
        replicas: int = 1,
        reshard: bool = True,
    ) -> None:
        """``replicas`` groups of ranks hold a whole copy each, say one a node. ``reshard``: a
        block's weights are let go after its forward and gathered again for its backward."""
        if world.size % replicas:
            raise ConfigError(f"{world.size} ranks can't be split into {replicas} equal replicas")
        if world.precision == "fp16":
            raise ConfigError("fp16 and sharding (FSDP2) don't go together: take bf16, or DDP")
        self.reshard = reshard
        self.mesh = _mesh(world, replicas)
        super().__init__(world, networks, optim, clip, phases)

    def _wrap(self, network: nn.Module) -> Any:
        # evaluation_mode: to the device and into autocast, without DDP
        network = self.world.accelerator.prepare_model(network, evaluation_mode=True)
        _broadcast(network)
        # scalars can't be cut: every rank holds them
        apart = {p for p in network.parameters() if p.ndim == 0}
        for unit in units_of(network).values():
            fully_shard(
                unit, mesh=self.mesh, reshard_after_forward=self.reshard, ignored_params=apart
            )
        return fully_shard(
            network, mesh=self.mesh, reshard_after_forward=False, ignored_params=apart
        )

    @cached_property
    def _modules(self) -> list[FSDPModule]:
        return fsdp_modules(self.networks)

    def _make_layout(self) -> Layout:
        return Sharded(self.networks, self.reshard)

    def _build(
        self, optim: Optim, network: nn.Module, updates: float
    ) -> list[torch.optim.Optimizer]:
        """The optimizers hold plain tensors, this rank's part of each parameter."""
        optimizers = optim.build(network, updates)
        for optimizer in optimizers:
            if isinstance(optimizer, MatrixMuon):
                optimizer.gather = lambda part, rows: gathered(whole_of(part), rows)
                optimizer.part, optimizer.shape_of = _own_rows, lambda part: whole_of(part).shape
            for group in optimizer.param_groups:
                group["params"] = [LocalParameter.of(parameter) for parameter in group["params"]]
        return optimizers

    @contextmanager
    def only(self, trains: Sequence[str], last: bool) -> Iterator[None]:
        # What an earlier forward left gathered would not learn that it is frozen, or no longer.
        for module in self._modules:
            module.reshard()
        for name, network in self.prepared.items():
            # scattered with each micro-batch: whole gradients would not fit; replicas only at last
            network.set_requires_gradient_sync(name in trains)
            network.set_requires_all_reduce(last and name in trains)
        with super().only(trains, last):
            yield

    @contextmanager
    def _synchronised(self, name: str, sync: bool) -> Iterator[None]:
        yield

    def _before_step(self, trains: Sequence[str]) -> None:
        for name in trains:
            for optimizer in self.optimizers[name]:
                for group in optimizer.param_groups:
                    for part in group["params"]:
                        whole = whole_of(part)
                        part.grad = None if whole.grad is None else local(whole.grad)
                        whole.grad = None
                        if part.grad is not None and not isinstance(whole, DTensor):
                            self.world.mean(part.grad)

    def _square_norm(self, moved: list[nn.Parameter]) -> Tensor:
        sharded = [p for p in moved if isinstance(whole_of(p), DTensor)]
        total = sum_of_squares(sharded, self.world.device)
        dist.all_reduce(total, group=self.mesh.get_group(self.mesh.ndim - 1))  # not over replicas
        held_by_all = [p for p in moved if not isinstance(whole_of(p), DTensor)]
        return total + sum_of_squares(held_by_all, self.world.device)

    @property
    def states(self) -> dict[str, Stateful]:
        states: dict[str, Stateful] = {}
        for name, network in self.networks.items():
            parts = {
                path: part
                for optimizer in self.optimizers[name]
                for group in optimizer.param_groups
                for part in group["params"]
                for path, parameter in network.named_parameters()
                if parameter is whole_of(part)
            }
            stored = partial(_stored_under, self.layout, name)
            states[f"networks.{name}"] = Weights(self.layout, name, network)
            optimizers = self.optimizers[name]
            states[f"optimizers.{name}"] = OptimizerState(network, optimizers, parts, stored)
        return states


@dataclass
class Weights:
    """A sharded network's weights and buffers, as a checkpoint takes them."""

    layout: Layout
    name: str
    network: nn.Module

    def state_dict(self) -> State:
        return {
            key: self.layout.stored(f"{self.name}.{key}", local(value))
            for key, value in self.network.state_dict().items()
        }

    def load_state_dict(self, state: State) -> None:
        """In place: ``state_dict`` gives views."""
        take_all(self.state_dict(), state)


class Sharded:
    """Every rank holds rows of every tensor, as FSDP2 gives them out."""

    def __init__(self, networks: Mapping[str, nn.Module], reshard: bool) -> None:
        self._networks, self._reshard = networks, reshard
        self._wholes = floating(networks)
        self.live = {name: local(value).detach() for name, value in self._wholes.items()}

    def stored(self, name: str, part: Tensor) -> Tensor | Part:
        return stored_as(self._wholes[name], part) if name in self._wholes else part

    def whole(self, name: str, part: Tensor) -> Tensor:
        return gathered(self._wholes[name], part)

    @contextmanager
    def lent(self, parts: Sequence[Tensor]) -> Iterator[None]:
        """Gathered once and kept, so that a forward needs no other rank."""
        modules = fsdp_modules(self._networks)
        for module in modules:  # a forward without a backward has left the old values gathered
            module.reshard()
        with exchanged(list(self.live.values()), parts):
            for network in self._networks.values():
                _root(network).set_reshard_after_forward(False)
            for module in modules:
                module.unshard()
            try:
                yield
            finally:
                for module in modules:
                    module.reshard()
                for network in self._networks.values():
                    _root(network).set_reshard_after_forward(self._reshard)
                    _root(network).set_reshard_after_forward(False, recurse=False)


# ---- making --------------------------------------------------------------------------------------


def _mesh(world: World, replicas: int) -> DeviceMesh:
    kind = world.device.type
    if replicas == 1:
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    shape = (replicas, world.size // replicas)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def _broadcast(network: nn.Module) -> None:
    """Every rank begins with the first one's weights, as under DDP."""
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def _own_rows(part: nn.Parameter, whole: Tensor) -> Tensor:
    like = whole_of(part)
    assert isinstance(like, DTensor)
    first = first_row(like)
    return whole[first : first + len(part)]


def fsdp_modules(networks: Mapping[str, nn.Module]) -> list[FSDPModule]:
    """All that ``fully_shard`` was applied to."""
    every = (module for network in networks.values() for module in network.modules())
    return [module for module in every if isinstance(module, FSDPModule)]


def _root(network: nn.Module) -> FSDPModule:
    assert isinstance(network, FSDPModule)
    return network


def _stored_under(layout: Layout, network: str, name: str, part: Tensor) -> Tensor | Part:
    return layout.stored(f"{network}.{name}", part)
