"""Generative adversarial networks: a generator and a discriminator that train in turns.

Goodfellow et al. 2014; losses and penalties as the config names them. A step has a discriminator
phase and a generator phase, each with random numbers of its own, and phases for regularisers that
are due more rarely ("lazy": Karras et al. 2020, section 3.1), whose weight is then as many times
larger. Optimizers that step more often for it are corrected in ``optim``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.augmentation.config import AugmentConfig
from genus.objectives.augmentation.controller import Controller
from genus.objectives.conditioning import image_of
from genus.objectives.games import Game, discriminator_losses, generator_losses
from genus.objectives.generation import Plain, Styled, generation_of
from genus.objectives.latent_spaces import NormalSpace, StyleSpace
from genus.objectives.path_length import PathLength, path_lengths
from genus.objectives.phase import (
    LatentSpace,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Traits,
)
from genus.objectives.slope_penalty import SlopePenalty
from genus.over_ranks import mean_over_ranks
from genus.parallel import World
from genus.state import State
from genus.strategies.making import Training

Names = tuple[str, ...]
REAL: Names = ("real",)
FAKE: Names = ("fake",)
BOTH: Names = ("real", "fake")
COARSE = 0.03
"""Smallest step of a finite difference that half precision resolves. docs/gan.md"""

Metrics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The game, its regularisers, and what the discriminator is shown."""

    game: Game = "non-saturating"
    """The losses of the two players."""
    r1: float = 1.0
    """gamma of R1, gamma/2 |grad D|^2 on real data (0: none)."""
    r2: float = 0.0
    """gamma of R2, the same on generated data."""
    anneal: int = 0
    """r1 and r2 fall along a cosine over so many samples (0: they stay) ..."""
    anneal_to: float = 0.1
    """... to this share."""
    penalty: Literal["exact", "finite-difference"] = "exact"
    """Of r1 and r2: by second derivatives, or by the difference between two points at random: no
    second derivatives, so that it works with train.compile, too; about as large on average, and
    noisier. docs/gan.md"""
    difference_step: float = 0.01
    """s of the finite difference, in the unit of the data."""
    penalty_every: int = 1
    """1: r1 and r2 are part of each discriminator step; k: a step of their own at each k-th."""
    path_length: float = 0.0
    """Weight of path-length regularisation, of style-based generators (0: none)."""
    path_length_every: int = 4
    """It is a step of its own at each k-th, with every other row of the batch."""
    path_length_decay: float = 0.01
    """Share of a step's mean length in the running mean."""
    mixing: float = 0.0
    """Probability of style mixing, of style-based generators."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to images before the discriminator sees them."""

    def __post_init__(self) -> None:
        if min(self.r1, self.r2, self.path_length, self.anneal) < 0 or self.difference_step <= 0:
            raise ConfigError(
                "objective: r1, r2, path_length, anneal can't be negative, difference_step not 0"
            )
        if min(self.penalty_every, self.path_length_every) < 1:
            raise ConfigError("objective: penalty_every and path_length_every count steps from 1")
        shares = self.mixing, self.anneal_to, self.path_length_decay
        if not all(0 <= share <= 1 for share in shares):
            raise ConfigError(
                "objective: mixing, anneal_to and path_length_decay are from 0 to 1, and they are "
                + ", ".join(f"{share:g}" for share in shares)
            )

    def check_world(self, train: Training, world: World, group: int) -> None:
        """ConfigError where the world's parts of a batch are none that this can train on; ``group``
        is the discriminator's."""
        share = train.batch // world.size
        for rows in {share, min(train.micro or share, share)}:
            check_together(rows, self.together(group))
        is_coarse = self.penalty == "finite-difference" and self.difference_step < COARSE
        if is_coarse and max(self.r1, self.r2) > 0 and world.precision != "fp32":
            raise ConfigError(
                f"objective.difference_step={self.difference_step:g} is lost in "
                f"{world.precision}'s rounding: take {COARSE:g} or more, or train.precision=fp32"
            )

    def together(self, group: int) -> int:
        """Rows that a micro-batch holds a multiple of: path lengths take every other one."""
        return math.lcm(group, 2 if self.path_length else 1)

    def check(self, train: Training) -> None:
        """ConfigError where the run can't be trained so: compiled networks have a gradient, and
        none of it (torch's aot_autograd)."""
        if not train.compile:
            return
        if self.path_length:
            raise ConfigError(
                "train.compile can't differentiate twice, as path lengths need: set "
                "objective.path_length=0, or train.compile=false"
            )
        if self.penalty == "exact" and max(self.r1, self.r2) > 0:
            raise ConfigError(
                "train.compile can't differentiate twice, as exact r1 and r2 need: set "
                "objective.penalty=finite-difference, or train.compile=false"
            )

    def build(
        self, networks: Mapping[str, nn.Module], shape: tuple[int, ...], classes: int
    ) -> Adversarial:
        """The objective for data of ``shape``. ConfigError for what those networks can't have."""
        generation = generation_of(networks, self.mixing)
        if isinstance(generation, Plain) and (self.path_length or self.mixing):
            raise ConfigError(
                "objective.path_length and objective.mixing are for style-based generators "
                "(network=StyleGAN2Config): leave them out"
            )
        group = int(getattr(networks["discriminator"], "group", 1))
        return Adversarial(self, generation, shape, classes, self.together(group))


def check_together(rows: int, together: int) -> None:
    """ConfigError where ``rows`` are no multiple of what is looked at ``together``."""
    if rows % together:
        raise ConfigError(
            f"{together} samples are looked at together (network.group; path lengths: 2), and a "
            f"rank has {rows} at once: make train.batch / processes and train.micro multiples of "
            f"{together}"
        )


class Adversarial:
    """The objective; networks: ``discriminator``, and either ``generator`` or ``mapping`` and
    ``synthesis``."""

    traits = Traits(
        density="none",
        sampling_cost="one network call",
        principle="adversarial: a game of two networks",
        latent="Gaussian, not inferred (of style-based generators also w: genus invert)",
        architecture="any network from vectors to data, and one from data to a number",
    )

    def __init__(
        self,
        config: AdversarialConfig,
        generation: Plain | Styled,
        shape: tuple[int, ...],
        classes: int,
        group: int,
    ) -> None:
        """``group``: rows that the discriminator looks at together."""
        self.config, self.generation, self.shape = config, generation, shape
        self.classes, self.group = classes, group
        self.augment, self.controller = config.augment.build(shape), Controller(config.augment)
        self.path_length = PathLength(config.path_length_decay)
        judge, makers = ("discriminator",), generation.trains
        self.penalty = SlopePenalty(
            config.r1, config.r2, config.penalty == "exact", config.difference_step,
            config.anneal, config.anneal_to,
        )  # fmt: skip
        self._is_lazy = config.penalty_every > 1 and bool(self.penalty)
        phases = [Phase("discriminator", judge, self.discriminator_loss)]
        if self._is_lazy:
            phases.append(Phase("penalty", judge, self.penalty_loss, config.penalty_every))
        phases.append(Phase("generator", makers, self.generator_loss))
        if config.path_length:
            every = config.path_length_every
            phases.append(Phase("path_length", makers, self.path_length_loss, every))
        self.phases = tuple(phases)

    def check_rows(self, rows: int) -> None:
        """ConfigError where a micro-batch of ``rows`` can't be looked at in whole groups."""
        check_together(rows, self.group)

    # ---- the phases ------------------------------------------------------------------------------

    def discriminator_loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, Metrics]:
        """Real and generated data in one call, and the penalties where they are due each step."""
        cfg, label, real = self.config, self._label(batch), self._real(batch)
        with torch.no_grad():
            fake = self.generation.draw(networks, batch.draws, label).to(real.dtype)
        eager = bool(self.penalty) and not self._is_lazy
        x = torch.cat([real, fake]).detach().requires_grad_(eager and self.penalty.exact)
        logits = self._judged(networks, x, batch, BOTH)
        on_real, on_fake = logits.chunk(2)
        losses = discriminator_losses(cfg.game, on_real, on_fake)
        self.controller.add(on_real)
        metrics = {
            "loss": losses.mean(),
            "real_sign": on_real.sign().mean(),  # r_t: towards 1 the discriminator overfits
            "fake_sign": on_fake.sign().mean(),
        }
        if cfg.augment.kind in ("ada", "fixed"):
            metrics["augment_p"] = self.controller.strength(batch.position)[0]
        loss = losses.mean()
        if eager:
            names = BOTH if cfg.r2 else REAL
            due, means = self._penalty(networks, x, logits[: len(names) * len(batch)], batch, names)
            loss, metrics = loss + due, {**metrics, **means}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def penalty_loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, Metrics]:
        """R1 and R2 by themselves, as many times larger as they are rarer."""
        cfg, label = self.config, self._label(batch)
        x, names = self._real(batch), REAL
        if cfg.r2:
            with torch.no_grad():
                fake = self.generation.draw(networks, batch.draws, label)
            x, names = torch.cat([x, fake.to(x.dtype)]), BOTH
        x = x.detach().requires_grad_(self.penalty.exact)
        logits = self._judged(networks, x, batch, names)
        due, means = self._penalty(networks, x, logits, batch, names)
        # the last bias moves no slope, and DDP would wait for its gradient
        loss = cfg.penalty_every * due + 0 * logits.sum()
        return loss, {name: value.detach() for name, value in means.items()}

    def generator_loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, Metrics]:
        """Fresh samples; of the real data only the relativistic game takes notice."""
        label = self._label(batch)
        x, names = self.generation.draw(networks, batch.draws, label), FAKE
        if self.config.game == "relativistic":
            x, names = torch.cat([self._real(batch).to(x.dtype), x]), BOTH
        logits = self._judged(networks, x, batch, names)
        losses = generator_losses(self.config.game, logits[: len(batch)], logits[-len(batch) :])
        return losses.mean(), {"loss": losses.detach().mean()}

    def path_length_loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, Metrics]:
        """Karras et al. 2020, section 3.2, on every other row."""
        generation = self.generation
        assert isinstance(generation, Styled)
        label, draws = self._label(batch), batch.draws
        styles = generation.mixed_styles(networks["mapping"], draws, label)[::2]
        noise = generation.noise(draws, styles.dtype)
        image = networks["synthesis"](styles, None if noise is None else noise[::2])
        y = draws.normal("y", self.shape)[::2].to(image.dtype)
        lengths = path_lengths(image, styles, y, networks["synthesis"])
        penalty = self.path_length.penalty(lengths).mean()
        loss = self.config.path_length * self.config.path_length_every * penalty
        metrics = {"loss": penalty, "length": lengths.mean(), "mean": self.path_length.mean[0]}
        # biases move no slope
        return loss + 0 * image.sum(), {name: value.detach() for name, value in metrics.items()}

    def after_step(self, networks: Networks, samples: int) -> None:
        """What was seen in the step moves the augmentation's strength and the mean length."""
        self.controller.step(samples, mean_over_ranks)
        self.path_length.update()

    # ---- parts of a loss -------------------------------------------------------------------------

    def _real(self, batch: Batch) -> Tensor:
        """In float32 at least, as all that is judged."""
        if "image" in batch:
            return image_of(batch)
        vector = batch["vector"]
        return vector.to(torch.promote_types(vector.dtype, torch.float32))

    def _label(self, batch: Batch) -> Tensor | None:
        """Generated rows take the classes of the real ones, whose frequencies they then have."""
        return batch["label"] if self.classes else None

    def _judged(self, networks: Networks, x: Tensor, batch: Batch, names: Sequence[str]) -> Tensor:
        """Logits (K B,) of K sets of rows, each augmented by the random numbers of its name."""
        self.check_rows(len(batch))
        label = self._label(batch)
        self.controller.to(x.device)
        p = self.controller.strength(batch.position)
        shown = [
            self.augment(part, p, batch.draws.scoped(name))
            for name, part in zip(names, x.chunk(len(names)), strict=True)
        ]
        labels = None if label is None else torch.cat([label] * len(names))
        logits: Tensor = networks["discriminator"](torch.cat(shown), labels)
        return logits.float() if logits.dtype != torch.float64 else logits

    def _penalty(
        self, networks: Networks, x: Tensor, logits: Tensor, batch: Batch, names: Sequence[str]
    ) -> tuple[Tensor, Metrics]:
        def judge(moved: Tensor, parts: Sequence[str]) -> Tensor:
            return self._judged(networks, moved, batch, parts)

        discriminator = networks["discriminator"]
        slopes = self.penalty.slopes(judge, discriminator, x, logits, names, batch.draws)
        return self.penalty.weighted(slopes, len(batch), batch.position)

    # ---- use -------------------------------------------------------------------------------------

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """One call; style-based generators can be truncated."""
        if isinstance(self.generation, Plain):
            options.only("this GAN")
            return SamplingPlan("generator", 1, None)
        options.only("a style-based GAN", "truncation")
        psi = options.truncation
        return SamplingPlan("generator" if psi is None else f"truncation {psi:g}", 1, None)

    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, C, H, W) images, nominally in [-1, 1], or (B, D) vectors."""
        space = next(iter(self.spaces.values()))
        return space.decode(networks, space.draw(networks, draws, label, options), label)

    @property
    def spaces(self) -> dict[str, LatentSpace]:
        """z, and w of style-based generators, which comes first."""
        normal = NormalSpace(self.generation)
        if isinstance(self.generation, Plain):
            return {"z": normal}
        return {"w": StyleSpace(self.generation), "z": normal}

    def state_dict(self) -> State:
        ours = {f"augment/{key}": value for key, value in self.controller.state_dict().items()}
        return {**ours, **self.path_length.state_dict()}

    def load_state_dict(self, state: State) -> None:
        begun = "augment/"
        theirs = {k.removeprefix(begun): v for k, v in state.items() if k.startswith(begun)}
        self.controller.load_state_dict(theirs)
        self.path_length.load_state_dict(state)
