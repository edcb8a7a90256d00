"""Whole networks on every rank: one process, or DistributedDataParallel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.objectives.phase import Phase, updates_of
from genus.optim.state import OptimizerState
from genus.parallel import World
from genus.parts import Part
from genus.state import Stateful
from genus.strategies.spread import Layout, Optim


class DataParallel:
    """Every rank holds all; gradients are averaged (see ``Spread``)."""

    layout: Layout

    def __init__(
        self,
        world: World,
        networks: Mapping[str, nn.Module],
        optim: Optim,
        clip: float,
        phases: Sequence[Phase] = (),
    ) -> None:
        """The networks are moved to the device and wrapped; they keep their parameter objects.
        ``clip`` is the largest norm of a gradient, 0 for any."""
        self.world, self.networks, self.clip = world, networks, clip
        self.prepared: dict[str, Any] = {n: self._wrap(network) for n, network in networks.items()}
        # as wrapped: sharding makes parameters anew
        self._trainable = trainable_of(networks)
        self.layout = self._make_layout()
        self.optimizers = {
            name: self._build(optim, network, updates_of(phases, name))
            for name, network in networks.items()
        }

    # ---- what another way of spreading does otherwise --------------------------------------------

    def _wrap(self, network: nn.Module) -> Any:
        with warnings.catch_warnings():  # accelerate spells DDP's options the older way
            warnings.simplefilter("ignore", FutureWarning)
            return self.world.accelerator.prepare_model(network)

    def _make_layout(self) -> Layout:
        return Whole(self.networks)

    def _build(
        self, optim: Optim, network: nn.Module, updates: float
    ) -> list[torch.optim.Optimizer]:
        return optim.build(network, updates)

    @contextmanager
    def _synchronised(self, name: str, sync: bool) -> Iterator[None]:
        no_sync: Any = getattr(self.prepared[name], "no_sync", None)
        if sync or no_sync is None:
            yield
        else:
            with no_sync():
                yield

    def _square_norm(self, moved: list[nn.Parameter]) -> Tensor:
        """Sum of squares of the gradients, over all ranks."""
        return sum_of_squares(moved, self.world.device)

    def _before_step(self, trains: Sequence[str]) -> None:
        """Bring the gradients to where the optimizers look for them."""

    # ---- a step ----------------------------------------------------------------------------------

    @contextmanager
    def only(self, trains: Sequence[str], last: bool) -> Iterator[None]:
        """A frozen network stays out of the exchange too, or DDP would wait for its gradients for
        ever. Parameters that were fixed when the network was prepared stay fixed."""
        with ExitStack() as stack:
            freeze_all_but(trains, self._trainable)
            for name in self.prepared:
                stack.enter_context(self._synchronised(name, last and name in trains))
            yield

    def loss(self, phase: Phase, micro: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return phase.loss(self.prepared, micro)

    def backward(self, loss: Tensor, trains: Sequence[str]) -> None:
        self.world.accelerator.backward(loss)

    def step(self, trains: Sequence[str], bad: Tensor) -> tuple[Tensor, Tensor]:
        world, scaler = self.world, self.world.accelerator.scaler
        optimizers = [optimizer for name in trains for optimizer in self.optimizers[name]]
        self._before_step(trains)
        if scaler is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        norm = self._square_norm(parameters).sqrt()
        clip_to(self.clip, norm, parameters)
        bad = world.max_(torch.maximum(bad, (~torch.isfinite(norm)).float()))
        for optimizer in optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer.grad_scale, optimizer.found_inf = None, bad  # type: ignore[attr-defined]
                optimizer.step()  # a fused step looks at the flag on the device: no synchronisation
            elif not bad.item():
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()  # by the infinities that unscale_ saw
        return norm, bad

    @property
    def states(self) -> dict[str, Stateful]:
        states: dict[str, Stateful] = {}
        for name, network in self.networks.items():
            states[f"networks.{name}"] = network
            states[f"optimizers.{name}"] = OptimizerState(network, self.optimizers[name])
        if self.world.accelerator.scaler is not None:
            states["scaler"] = self.world.accelerator.scaler
        return states


class Whole:
    """Every rank holds every tensor."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.live = floating(networks)

    def stored(self, name: str, part: Tensor) -> Tensor | Part:
        return part

    def whole(self, name: str, part: Tensor) -> Tensor:
        return part

    @contextmanager
    def lent(self, parts: Sequence[Tensor]) -> Iterator[None]:
        with exchanged(list(self.live.values()), parts):
            yield


def floating(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and stored buffers of floating point, by 'network.name'."""
    return {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
        if value.is_floating_point()
    }


@contextmanager
def exchanged(live: list[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Within, the live tensors hold ``values``."""
    kept = [value.clone() for value in live]
    torch._foreach_copy_(live, list(values))
    try:
        yield
    finally:
        torch._foreach_copy_(live, kept)


def trainable_of(networks: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each network that are not fixed for good."""
    return {
        name: [p for p in network.parameters() if p.requires_grad]
        for name, network in networks.items()
    }


def freeze_all_but(trains: Sequence[str], trainable: Mapping[str, Sequence[nn.Parameter]]) -> None:
    """Only the networks that a phase trains take part in gradients."""
    for name, parameters in trainable.items():
        for parameter in parameters:
            parameter.requires_grad_(name in trains)


def clip_to(clip: float, norm: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Shrink the gradients, of which ``norm`` is the norm, to ``clip`` at most (0: as they are)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if clip and gradients:
        shrink = (clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, shrink.to(gradients[0].dtype))


def sum_of_squares(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Of the gradients on this rank, float64, on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([n.double() for n in torch._foreach_norm(gradients)]).square().sum()
