"""Sequence to sequence: log p(y | x) = sum over t of log p(y_t | y_<t, x), by cross-entropy.

Targets begin with the end token, which also ends them. Shapes: B rows, T tokens of a target.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.errors import ConfigError
from genus.networks.transformer.encoder_decoder import AlignedScores
from genus.networks.transformer.scores import TokenScores
from genus.objectives.phase import (
    LogDensity,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Stateless,
    Traits,
)
from genus.objectives.sources import TRIM, SourceConfig, SourceReader, up_to
from genus.samplers.beam import beam_search


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceConfig:
    """What counts, and how answers are searched for."""

    source: SourceConfig = field(default_factory=SourceConfig)
    """How frames and images become sequences."""
    groups: int = 4
    """A batch goes through the network in so many groups of rows of similar length: padding all to
    the longest would double the work. Changes no result beyond rounding and dropout masks."""
    ctc: float = 0.0
    """Weight of the encoder's own reading of the target by connectionist temporal classification
    (Watanabe et al. 2017, eq. 9), for sounds: teaches what is said when. 0: none."""
    beams: int = 4
    """Hypotheses that beam search keeps; 1 is greedy."""
    length_penalty: float = 0.6
    """Exponent of Wu et al. 2016, eq. 14; 0 favours short answers."""

    def __post_init__(self) -> None:
        if min(self.beams, self.groups) < 1 or self.length_penalty < 0:
            raise ConfigError(
                f"objective.beams={self.beams} and groups={self.groups} are at least 1, "
                f"length_penalty={self.length_penalty:g} at least 0"
            )
        if not 0 <= self.ctc < 1:
            raise ConfigError(f"objective.ctc={self.ctc:g} is to be in [0, 1)")

    def build(self, info: DataInfo) -> SequenceToSequence:
        """The objective for pairs. ConfigError where ``info`` has none."""
        return SequenceToSequence(self, self.source.build(info), info.target_length, info.end)


class SequenceToSequence(Stateless):
    """The objective; its network, ``model``, is an ``EncoderDecoder``."""

    traits = Traits(
        density="exact",
        sampling_cost="one call of the encoder, one of the decoder a token and beam",
        principle="maximum likelihood",
        latent="none",
        architecture="transformers with cross-attention",
    )

    def __init__(
        self, config: SequenceToSequenceConfig, source: SourceReader, length: int, end: int
    ) -> None:
        """``length``: tokens of the longest target, its end token included."""
        self.config, self.source, self.length, self.end = config, source, length, end
        self.phases = (Phase("predict", ("model",), self.loss),)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - ctc) nats + ctc nats by CTC of a target, divided by the longest target's tokens: a
        mean over the rows in which all tokens weigh the same, however rows are dealt to processes.
        The metrics are nats a token of the micro-batch."""
        nats, tokens, ctc = self._nats(networks, batch, training=True)
        metrics = {"loss": (nats.sum() / tokens.sum()).detach()}
        weight = self.config.ctc
        if ctc is not None:
            metrics["ctc"] = (ctc.sum() / tokens.sum()).detach()
            nats = (1 - weight) * nats + weight * ctc
        return nats.mean() / self.length, metrics

    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        """ln P of each target given its source."""
        nats, tokens, _ = self._nats(networks, batch, training=False)
        kind = "none: targets given their sources"
        return LogDensity(-nats, "exact", kind, self.length, unit="nats/token", counts=tokens)

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """ConfigError for options that a search does not have."""
        options.only("a search for the best answer", "beams", "length_penalty", "length")
        beams, alpha = self._search(options)
        method = "greedy" if beams == 1 else f"{beams} beams, length penalty {alpha:g}"
        return SamplingPlan(method, (options.length or self.length) * beams, None)

    @torch.no_grad()
    def translate(self, networks: Networks, batch: Batch, options: SampleOptions) -> Tensor:
        """The most probable answers (B, T) that beam search finds."""
        self.plan(options)
        beams, alpha = self._search(options)
        source = self.source.read(batch)
        every = torch.arange(len(batch), device=source.values.device)
        values, mask, _ = source.rows(every, int(source.lengths.max()))
        start = torch.full((len(batch), 1), self.end, device=values.device)
        return beam_search(
            networks["model"],
            start,
            None,
            options.length or self.length,
            beams=beams,
            alpha=alpha,
            end=self.end,
            source=values,
            source_mask=mask,
        ).tokens

    def _nats(
        self, networks: Networks, batch: Batch, *, training: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """-ln P of each row's target, its number of tokens, -ln P by CTC where that is on: (B,)."""
        targets, source = batch["target"].long(), self.source.read(batch, training)
        tokens = (targets >= 0).sum(1)
        # one look at the device: everything about lengths is decided on the host
        T, S = torch.stack([tokens, source.lengths]).cpu()
        order = (T + S).argsort(stable=True)
        nats, ctc = [], []
        for rows in order.tensor_split(min(self.config.groups, len(batch))):
            part = source.rows(at := rows.to(targets.device), int(S[rows].max()))
            right = targets[at, : up_to(int(T[rows].max()), TRIM)]
            inputs = F.pad(right[:, :-1], (1, 0), value=self.end).clamp(min=0)
            scores: TokenScores | AlignedScores = networks["model"](
                part.values, inputs, targets=right, source_mask=part.mask
            )
            nats.append(scores.nats.sum(1))
            if isinstance(scores, AlignedScores):
                ctc.append(scores.ctc)
        back = order.argsort().to(targets.device)
        return torch.cat(nats)[back], tokens, torch.cat(ctc)[back] if ctc else None

    def _search(self, options: SampleOptions) -> tuple[int, float]:
        alpha = options.length_penalty
        return (
            options.beams or self.config.beams,
            self.config.length_penalty if alpha is None else alpha,
        )
