"""Next-token prediction: log p(x) = sum over t of log p(x_t | x_<t), by cross-entropy.

Sequences are windows of packed text, which have one token more than are predicted; or images, pixel
by pixel in raster order with a pixel's channels side by side, given a class or none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.transformer.scores import TokenScores
from genus.objectives.conditioning import label_of
from genus.objectives.phase import (
    LogDensity,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Stateless,
    Traits,
)
from genus.samplers.tokens import TokenSamplingConfig, generate

LEVELS = 256
"""Tokens of an image are its levels."""


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """What counts."""

    documents: bool = False
    """Tokens of packed text see their own document only; otherwise the whole window."""
    z_loss: float = 0.0
    """Weight of (log-sum-exp of the logits)^2, which keeps them from drifting (Chowdhery et al.
    2022, section 5); 0: none."""
    label_dropout: float = 0.0
    """Probability that a row trains without its class; guidance needs some."""

    def __post_init__(self) -> None:
        if self.z_loss < 0 or not 0 <= self.label_dropout <= 1:
            raise ConfigError(
                f"objective.z_loss={self.z_loss} is not to be negative, label_dropout="
                f"{self.label_dropout} to be a probability"
            )

    def build(
        self,
        length: int,
        classes: int = 0,
        image: tuple[int, int, int] | None = None,
        sampling: TokenSamplingConfig | None = None,
    ) -> NextToken:
        """The objective for windows of ``length`` tokens, or for images (C, H, W)."""
        return NextToken(self, length, classes, image, sampling or TokenSamplingConfig())


class NextToken(Stateless):
    """The objective; its network, ``model``, is a ``Transformer``."""

    traits = Traits(
        density="exact",
        sampling_cost="one network call a token, each of one token's work",
        principle="maximum likelihood",
        latent="none",
        architecture="causal transformers",
    )

    def __init__(
        self,
        config: NextTokenConfig,
        length: int,
        classes: int,
        image: tuple[int, int, int] | None,
        sampling: TokenSamplingConfig,
    ) -> None:
        self.config, self.length, self.classes, self.image = config, length, classes, image
        self.sampling = sampling
        self.phases = (Phase("predict", ("model",), self.loss),)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats a token (of images: bits/dim), and the z-loss where it is on."""
        scores = self._scores(networks, batch, self.config.label_dropout)
        loss = scores.nats.mean()
        if self.image:
            loss = loss / math.log(2)
        metrics = {"loss": loss.detach()}
        if self.config.z_loss:
            log_z_squared = scores.log_z.square().mean()
            loss = loss + self.config.z_loss * log_z_squared
            metrics["log_z_squared"] = log_z_squared.detach()
        return loss, metrics

    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        """ln P of each row: of images given their class, of windows given their first token."""
        nats = -self._scores(networks, batch, 0.0).nats.sum(1)
        if self.image:
            kind = "none: probabilities of levels"
            return LogDensity(nats, "exact", kind, math.prod(self.image))
        kind = f"none: windows of {self.length} tokens, each given the one before it"
        return LogDensity(nats, "exact", kind, self.length, unit="nats/token")

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """ConfigError for options that drawing tokens does not have."""
        known = ("temperature", "top_k", "top_p", "min_p", "guidance", "prompt", "length")
        options.only("a model that draws token by token", *known[: 5 if self.image else 7])
        how = self._sampling(options)
        if how.guidance != 1 and (self.classes == 0 or self.config.label_dropout == 0):
            raise ConfigError(
                "guidance needs classes and objective.label_dropout > 0 in training: take 1"
            )
        calls = self.length * (1 if how.guidance == 1 else 2)
        return SamplingPlan(_told(how), calls, how.guidance if self.classes else None)

    @torch.no_grad()
    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, C, H, W) images in [-1, 1]; or tokens (B, T), which follow ``options.prompt`` and
        fill a window with it where ``options.length`` is open. ConfigError for text from nothing.

        Nothing was trained beyond a window: where that is full, its second half is read again as
        the beginning of the next one.
        """
        self.plan(options)
        prompt = options.prompt
        if self.image:
            prompt = torch.zeros(0, dtype=torch.int64)
        elif prompt is None:
            raise ConfigError("text goes on from something: give a --prompt")
        count = options.length or self.length - len(prompt)
        if count < 1:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens leaves no room in a window of {self.length}"
            )
        how = self._sampling(options)
        context, parts = prompt.to(draws.device).expand(len(draws), -1), []
        while count:
            if context.shape[1] >= self.length:
                context = context[:, -max(1, self.length // 2) :]
                draws = draws.scoped("window")
            part = generate(
                networks["model"],
                context,
                None,
                min(count, max(1, self.length - context.shape[1])),
                draws,
                temperature=how.temperature,
                top_k=how.top_k,
                top_p=how.top_p,
                min_p=how.min_p,
                label=label,
                guidance=how.guidance,
                classes=self.classes,
            )
            parts.append(part)
            count -= part.shape[1]
            context = torch.cat([context, part], dim=1)
        tokens = torch.cat(parts, dim=1)
        if not self.image:
            return tokens
        C, H, W = self.image
        return rearrange(tokens, "b (h w c) -> b c h w", h=H, w=W, c=C) / 127.5 - 1

    def _scores(self, networks: Networks, batch: Batch, dropout: float) -> TokenScores:
        if self.image:
            # a class or none stands in front: every pixel has a target
            inputs = targets = rearrange(batch["image"].long(), "b c h w -> b (h w c)")
            inputs = inputs[:, :-1]
            label = label_of(batch, self.classes, dropout)
            scores: TokenScores = networks["model"](inputs, targets=targets, label=label)
            return scores
        tokens = batch["tokens"].long()
        document = batch["document"][:, :-1] if self.config.documents else None
        scores = networks["model"](tokens[:, :-1], targets=tokens[:, 1:], document=document)
        return scores

    def _sampling(self, options: SampleOptions) -> TokenSamplingConfig:
        """The objective's, with the options' in the place of what they give."""
        names = ("temperature", "top_k", "top_p", "min_p", "guidance")
        given = {name: getattr(options, name) for name in names}
        return replace(self.sampling, **{k: v for k, v in given.items() if v is not None})


def _told(how: TokenSamplingConfig) -> str:
    filters = {"top-k": (how.top_k, 0), "top-p": (how.top_p, 1), "min-p": (how.min_p, 0)}
    used = [f", {name} {value:g}" for name, (value, off) in filters.items() if value != off]
    return f"token by token, temperature {how.temperature:g}{''.join(used)}"
