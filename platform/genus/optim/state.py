"""The state of a network's optimizers, by the names of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genus.optim.muon import MatrixMuon
from genus.parts import Part
from genus.state import State

Stored = Callable[[str, Tensor], Tensor | Part]
"""(name of a parameter, tensor that lies as its part on this rank) -> what a checkpoint takes."""


@dataclass
class OptimizerState:
    """The state of one network's optimizers, tensors by parameter name, for any sharding."""

    network: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    parts: Mapping[str, Tensor] | None = None
    """What the optimizers hold in the place of the network's parameters, by name, if they do."""
    stored: Stored = lambda name, tensor: tensor

    @property
    def kinds(self) -> str:
        """The optimizers' class names."""
        return " ".join(type(optimizer).__name__ for optimizer in self.optimizers)

    def state_dict(self) -> State:
        names = {id(p): name for name, p in self._parameters().items()}
        state: State = {
            f"{names[id(p)]}/{key}": self._stored(names[id(p)], p, value)
            for optimizer in self.optimizers
            for p, values in optimizer.state.items()
            for key, value in values.items()
        }
        return {**state, "kinds": self.kinds}

    def blank(self, key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | Part:
        """Memory for a piece of state that this object does not have yet."""
        name = key.rpartition("/")[0]
        parameter = self._parameters().get(name)
        if parameter is None or not key.endswith(_LIKE_THEIR_PARAMETER):
            return torch.empty(shape, dtype=dtype)
        return self.stored(name, torch.empty_like(parameter, dtype=dtype, requires_grad=False))

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError or KeyError where other optimizers or another network were saved.

        A parameter that another of the same optimizers had then (Muon's rule for the ends was
        another once) begins without moments.
        """
        kinds = str(state["kinds"]).replace("_MatrixMuon", "MatrixMuon")  # its name once
        if kinds != self.kinds:
            raise ValueError(f"it was saved by {kinds}, this run has {self.kinds}")
        owners = {
            id(p): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        parameters = self._parameters()
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            if not isinstance(value, Tensor | Part):
                continue
            p = parameters[name]
            if isinstance(owners[id(p)], MatrixMuon) != (key == "momentum_buffer"):
                continue
            local = value.local if isinstance(value, Part) else value
            if local.shape == p.shape:  # moments lie like their parameter (device, memory format)
                local = torch.empty_like(p, dtype=local.dtype, requires_grad=False).copy_(local)
            else:
                local = local.to(p.device)
            owners[id(p)].state[p][key] = local

    def _parameters(self) -> Mapping[str, Tensor]:
        return self.parts if self.parts is not None else dict(self.network.named_parameters())

    def _stored(self, name: str, parameter: Tensor, value: Tensor) -> Tensor | Part:
        return self.stored(name, value) if value.shape == parameter.shape else value


_LIKE_THEIR_PARAMETER = ("/exp_avg", "/exp_avg_sq", "/momentum_buffer")
