"""How the probability of the augmentations follows the discriminator's overfitting.

Karras et al. 2020, section 3.1: r_t = E[sign D(real)] is 0 where D can't tell and 1 where it knows
the training set by heart; p goes up by a fixed step where r_t is above its target, else down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genus.objectives.augmentation.config import AugmentConfig
from genus.optim.schedule import half_cosine
from genus.state import State, scalar, take


def updated(p: Tensor, sign_mean: Tensor, samples_since: int, config: AugmentConfig) -> Tensor:
    """p after ``samples_since`` samples with the mean sign r_t; both (1,) or ()."""
    step = samples_since / config.ramp
    return (p + torch.sign(sign_mean - config.target) * step).clamp(0, 1)


class Controller:
    """p and what it is found from, all on the device: nothing here waits for it.

    The state is the same on all ranks after each ``step``, so it can be saved by any and read by
    any number of them.
    """

    def __init__(self, config: AugmentConfig, device: torch.device | str = "cpu") -> None:
        self._config = config
        self.p = torch.full((1,), config.p, device=device)
        """(1,) float32, the probability now."""
        self.overfitting = torch.zeros(1, device=device)
        """(1,) r_t as of the last update; 0 before the first."""
        self._local = torch.zeros(2, device=device)  # sum of signs, count: since the last step
        self._sums = torch.zeros(2, device=device)  # the mean over ranks, since the last update
        self._steps = 0
        self._seen = 0

    def to(self, device: torch.device) -> None:
        """Move to where the logits are; nothing where it is there."""
        if self.p.device != device:
            names = ("p", "overfitting", "_local", "_sums")
            for name in names:
                setattr(self, name, getattr(self, name).to(device))

    def strength(self, position: int) -> Tensor:
        """(1,) p for the step that begins at ``position`` samples."""
        grows = self._config.grows if self._config.kind == "fixed" else 0
        if not grows:
            return self.p
        return self.p * (1 - half_cosine(position, grows))

    def add(self, logits: Tensor) -> None:
        """Counts D's ``logits`` of real images (or their signs), of one micro-batch."""
        if self._config.kind == "ada":
            # of a step that will be skipped nothing must stay: nan has no sign
            signs = logits.detach().float().nan_to_num().sign()
            self._local += torch.stack([signs.sum(), torch.ones_like(signs).sum()])

    def step(self, samples: int, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Ends a training step at the progress ``samples`` (all ranks', since the run's start).

        ``mean_over_ranks`` is called once a step with a tensor (2,), on all ranks; only where p
        adapts.
        """
        if self._config.kind != "ada":
            return
        self._sums += mean_over_ranks(self._local)
        self._local.zero_()
        self._steps += 1
        if self._steps < self._config.interval:
            return
        total, count = self._sums[:1], self._sums[1:]
        heard = count > 0  # a discriminator that saw no real image says nothing
        r_t = total / torch.where(heard, count, torch.ones_like(count))
        p = updated(self.p, r_t, samples - self._seen, self._config)
        self.p.copy_(torch.where(heard, p, self.p))
        self.overfitting.copy_(torch.where(heard, r_t, self.overfitting))
        self._sums.zero_()
        self._steps, self._seen = 0, samples

    def state_dict(self) -> State:
        return {
            "p": self.p,
            "overfitting": self.overfitting,
            "sums": self._sums,
            "steps": self._steps,
            "seen": self._seen,
        }

    def load_state_dict(self, state: State) -> None:
        take(self.p, state["p"])
        take(self.overfitting, state["overfitting"])
        take(self._sums, state["sums"])
        self._local.zero_()
        self._steps, self._seen = int(scalar(state["steps"])), int(scalar(state["seen"]))
