"""What the loop needs of the way in which networks are spread over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.objectives.phase import Phase
from genus.parts import Part
from genus.state import Stateful


class Optim(Protocol):
    """The config of an optimizer."""

    elementwise: ClassVar[bool]
    """Each number is updated by its own gradient and moments: flat tensors will do."""

    def build(self, network: nn.Module, updates: float = 1.0) -> list[torch.optim.Optimizer]:
        """For a network that takes ``updates`` gradient steps a step of the loop, on average."""


class Layout(Protocol):
    """The floating-point tensors of the networks as they lie on this rank."""

    @property
    def live(self) -> Mapping[str, Tensor]:
        """This rank's part of each, by 'network.name': views, which training changes."""

    def stored(self, name: str, part: Tensor) -> Tensor | Part:
        """What a checkpoint takes for a tensor that lies as the live one of that name."""

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor, of all ranks' parts; all ranks call it."""

    def lent(self, parts: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Within, the run's networks hold these values (in the order of ``live``), each whole on
        every rank: ranks may call them as often as they like, alone."""


class Spread(Protocol):
    """Networks and optimizers on the ranks of a world."""

    @property
    def prepared(self) -> Mapping[str, Any]:
        """What objectives call."""

    @property
    def optimizers(self) -> Mapping[str, Sequence[torch.optim.Optimizer]]:
        """For learning rates."""

    @property
    def layout(self) -> Layout:
        """Where the tensors lie, for averages."""

    @property
    def states(self) -> Mapping[str, Stateful]:
        """Weights and moments, 'networks.NAME' and 'optimizers.NAME', and a scaler's state."""

    def only(self, trains: Sequence[str], last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward: only ``trains`` is unfrozen; gradients are exchanged
        with the ``last`` micro-batch."""

    def loss(self, phase: Phase, micro: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The phase's loss of a micro-batch, and its metrics."""

    def backward(self, loss: Tensor, trains: Sequence[str]) -> None:
        """Add the loss's gradients to those of the step."""

    def step(self, trains: Sequence[str], bad: Tensor) -> tuple[Tensor, Tensor]:
        """Clip and update ``trains``, unless some rank's loss or gradient is not finite; forget
        the gradients. ``bad`` is this rank's flag, 1 where a loss was not finite.

        Returns the gradient's norm before clipping, over all networks of the phase and the same on
        all ranks, and the flag that all ranks agreed on, both on the device.
        """
