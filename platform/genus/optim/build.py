"""Optimizers for a run's networks: AdamW, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from genus.errors import ConfigError
from genus.optim.muon import MatrixMuon
from genus.optim.roles import ends_of, width_of
from genus.optim.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter 2019), fused where the device has it.

    ``tuned_width`` gives a transformer the learning rates, but not the rest, of muP (Yang et al.
    2022): the rate of a matrix falls as 1 / (its inputs), that of vectors, embeddings and what
    reads the data stays (table 8). An untied output layer counts as a matrix, since it has no
    factor 1 / width behind it (table 3). What differs from muP: weights begin at N(0, 0.02^2) at
    every width, where muP's variance falls as 1 / width, the output's as 1 / width^2; and a tied
    output layer has the embeddings' rate and no such factor. It takes for granted that the MLP's
    width grows with the network's, and the number of heads instead of their width.
    """

    elementwise: ClassVar[bool] = True

    lr: float = 1e-4
    """Peak learning rate."""
    tuned_width: int = 0
    """The width at which ``lr`` was found: in a transformer of another width the matrices take
    lr * tuned_width / width, and decay as fast as with lr; 0: all take lr."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment, per step."""
    last_beta2: float = 0.0
    """The second moment's decay moves to this as the schedule decays (0: it stays)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled, on matrices and convolutions only (not on gains, biases, embeddings)."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""

    def __post_init__(self) -> None:
        if self.lr < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.lr={self.lr}, betas {self.betas}: lr >= 0, betas in [0, 1)")
        if not 0 <= self.last_beta2 < 1:
            raise ConfigError(f"optim.last_beta2={self.last_beta2}: in [0, 1), 0 for none")
        if self.tuned_width < 0:
            raise ConfigError(f"optim.tuned_width={self.tuned_width}: a width, or 0 for none")

    def build(self, network: nn.Module, updates: float = 1.0) -> list[torch.optim.Optimizer]:
        """One optimizer over all parameters of a network; none where it has no parameters.
        ConfigError where ``tuned_width`` is given and the network is no transformer.

        ``lr`` and ``betas`` are those of a step of the loop. For ``updates`` gradient steps in one
        (1 + 1/k with a lazy regulariser at each k-th) both are shared out among them: Karras et al.
        2020, appendix B.
        """
        if updates != 1:
            return self.shared(updates).build(network)
        parameters = list(network.parameters())
        ends = ends_of(network)
        if not parameters or not self.tuned_width:
            return self.over(parameters, ends.embeddings)
        ratio = width_of(network) / self.tuned_width
        return self.over(parameters, ends.embeddings, ends.reads, ratio)

    def shared(self, updates: float) -> AdamWConfig:
        """What each of ``updates`` gradient steps takes of this, which is a loop's step's."""
        betas = self.betas[0] ** (1 / updates), self.betas[1] ** (1 / updates)
        last = self.last_beta2 ** (1 / updates) if self.last_beta2 else 0.0
        return replace(self, lr=self.lr / updates, betas=betas, last_beta2=last)

    def over(
        self,
        parameters: list[nn.Parameter],
        plain: Set[int],
        reads: Set[int] = frozenset(),
        ratio: float = 1.0,
    ) -> list[torch.optim.Optimizer]:
        """One optimizer over ``parameters``: vectors and those with an id in ``plain`` do not
        decay; the other matrices do, and but for those in ``reads`` take lr / ``ratio``."""
        others = [p for p in parameters if p.ndim < 2 or id(p) in plain]
        matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in plain]
        first = [p for p in matrices if id(p) in reads]
        inner = [p for p in matrices if id(p) not in reads]
        decay = self.weight_decay
        groups = [
            {"params": first, "weight_decay": decay, "peak": self.lr},
            # a step's decay is the product of the two
            {"params": inner, "weight_decay": decay * ratio, "peak": self.lr / ratio},
            {"params": others, "weight_decay": 0.0, "peak": self.lr},
        ]
        span = self.betas[1], self.last_beta2 or self.betas[1]
        groups = [
            {**group, "lr": group["peak"], "beta2": span} for group in groups if group["params"]
        ]
        if not groups:
            return []
        return [torch.optim.AdamW(groups, self.lr, self.betas, self.eps, fused=True)]


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon (Jordan 2024, ``optim/muon.py``) for the matrices inside a network; AdamW for vectors,
    embeddings, and what reads the data or writes the result (``optim/roles.py``).

    Convolutions count as matrices (C_out, C_in k k), as in the author's own use of it.
    """

    elementwise: ClassVar[bool] = False

    lr: float = 0.02
    """Peak learning rate of the matrices."""
    momentum: float = 0.95
    """Nesterov momentum of the matrices."""
    weight_decay: float = 0.0
    """Decoupled, on the matrices."""
    adamw_lr: float = 1e-3
    """Peak learning rate of AdamW, for everything else."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run, of both."""

    def build(self, network: nn.Module, updates: float = 1.0) -> list[torch.optim.Optimizer]:
        """At most two optimizers. ``updates``: as with AdamWConfig."""
        parameters = list(network.parameters())
        ends = ends_of(network)
        outside = ends.embeddings | ends.reads | ends.writes
        matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in outside]
        theirs = {id(p) for p in matrices}
        rest = (
            AdamWConfig(lr=self.adamw_lr)
            .shared(updates)
            .over([p for p in parameters if id(p) not in theirs], ends.embeddings)
        )
        if not matrices:
            return rest
        muon = MatrixMuon(
            matrices,
            lr=self.lr / updates,
            momentum=self.momentum ** (1 / updates),
            weight_decay=self.weight_decay,
        )
        return [muon, *rest]


def set_learning_rates(
    optimizers: Mapping[str, Sequence[torch.optim.Optimizer]], factor: float, decayed: float = 0.0
) -> None:
    """Every group's learning rate is its peak times the schedule's factor; second moments' decays
    have gone the share ``decayed`` of their way."""
    for group_of_networks in optimizers.values():
        for optimizer in group_of_networks:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
                if "beta2" in group:
                    first, last = group["beta2"]
                    group["betas"] = group["betas"][0], first + decayed * (last - first)
