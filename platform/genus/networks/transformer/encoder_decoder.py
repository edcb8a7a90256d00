"""Sequence to sequence: an encoder that sees all of the source, a decoder that attends to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.roles import Roles
from genus.networks.transformer.block import Block, initialise, make_norm
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.config import BlockConfig
from genus.networks.transformer.decoder import Transformer
from genus.networks.transformer.scores import TokenScores
from genus.networks.transformer.sight import check_length, full_view


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(BlockConfig):
    """An encoder-decoder (Vaswani et al. 2017) of pre-norm blocks."""

    encoder_depth: int = 0
    """Blocks of the encoder; 0 means ``depth``."""

    def build(
        self,
        *,
        vocabulary: int,
        length: int,
        source_length: int,
        source_vocabulary: int = 0,
        source_features: int = 0,
        ctc: bool = False,
    ) -> EncoderDecoder:
        """The network for ``length`` tokens out of ``vocabulary`` given a source of up to
        ``source_length``: tokens out of ``source_vocabulary`` or frames of ``source_features``
        numbers, one of the two being 0. Lengths bound learned positions only. ``ctc`` adds a second
        output, from the encoder alone (``AlignedScores``)."""
        return EncoderDecoder(
            self,
            vocabulary=vocabulary,
            length=length,
            source_length=source_length,
            source_vocabulary=source_vocabulary,
            source_features=source_features,
            ctc=ctc,
        )


class AlignedScores(NamedTuple):
    """``TokenScores`` of each target, and of each row a second opinion."""

    nats: Tensor
    """(B, T): -log p(target), 0 where a target is -1."""
    log_z: Tensor
    """(B, T)."""
    ctc: Tensor
    """(B,): -log of the probability that the encoder alone gives the tokens before the last, by
    connectionist temporal classification (Graves et al. 2006, eq. 8): each element of the source
    says a token or, as token V, nothing, and repetitions are one. 0 where the source is too short
    to say them."""


class Encoder(nn.Module):
    """Source -> embeddings -> ``depth`` blocks -> norm; sizes as in ``build``."""

    def __init__(self, config: BlockConfig, *, length: int, vocabulary: int, features: int) -> None:
        super().__init__()
        if (vocabulary > 0) == (features > 0):
            raise ConfigError(
                "encoder: give source_vocabulary (tokens) or source_features (frames), not both, "
                "above 0"
            )
        self.config = config
        self.length = length
        self.embedding: nn.Module
        if vocabulary:
            self.embedding = nn.Embedding(vocabulary, config.width)
        else:
            self.embedding = nn.Linear(features, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(length, config.width) if learned else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm = make_norm(config)
        initialise(self, config.depth)

    @property
    def roles(self) -> Roles:
        return Roles(reads=[self.embedding.get_parameter("weight")], width=self.config.width)

    def forward(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """source (B, S) int64 or (B, S, F), mask (B, S) True where real -> (B, S, D).

        Every row needs something real.
        """
        x = self.embedding(source)
        positions, view = full_view(self.config, x, mask)
        if self.positions is not None:
            check_length(x.shape[1], self.length)
            x = x + self.positions(positions)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, view)
        y: Tensor = self.norm(x)
        return y


class EncoderDecoder(nn.Module):
    """An ``Encoder`` and a ``Transformer`` with cross-attention; sizes as in ``build``."""

    def __init__(
        self,
        config: EncoderDecoderConfig,
        *,
        vocabulary: int,
        length: int,
        source_length: int,
        source_vocabulary: int = 0,
        source_features: int = 0,
        ctc: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            replace(config, depth=config.encoder_depth or config.depth),
            length=source_length,
            vocabulary=source_vocabulary,
            features=source_features,
        )
        self.decoder = Transformer(config, vocabulary=vocabulary, length=length, cross=True)
        self.aligned = nn.Linear(config.width, vocabulary + 1) if ctc else None

    @property
    def roles(self) -> Roles:
        return Roles(writes=[] if self.aligned is None else [self.aligned.weight])

    def forward(
        self,
        source: Tensor | None,
        tokens: Tensor,
        *,
        targets: Tensor | None = None,
        source_mask: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor | TokenScores | AlignedScores:
        """What ``Transformer.forward`` returns for ``tokens`` (B, T), given the source; with
        ``ctc``, ``targets`` give AlignedScores.

        source (B, S) int64 or (B, S, F), with source_mask (B, S) True where real: with the first
        tokens of a cache, which keeps what the decoder needs of it; None with later ones.
        """
        if source is None and (cache is None or cache.empty):
            raise ConfigError("encoder-decoder: the first call needs the source")
        memory = None if source is None else self.encoder(source, source_mask)
        scores: Tensor | TokenScores = self.decoder(
            tokens,
            targets=targets,
            memory=memory,
            memory_mask=source_mask,
            cache=cache,
            lengths=lengths,
            last_only=last_only,
        )
        if self.aligned is None or targets is None or memory is None:
            return scores
        assert isinstance(scores, TokenScores)
        ctc = ctc_nats(self.aligned(memory), source_mask, targets)
        return AlignedScores(*scores, ctc)


def ctc_nats(logits: Tensor, mask: Tensor | None, targets: Tensor) -> Tensor:
    """(B,) as AlignedScores has it, of logits (B, S, V + 1), mask (B, S) and targets (B, T)."""
    B, S, blank = logits.shape[0], logits.shape[1], logits.shape[2] - 1
    lengths = torch.full((B,), S, device=logits.device) if mask is None else mask.sum(1)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return F.ctc_loss(
        log_p.transpose(0, 1),
        targets.clamp(min=0),
        lengths,
        (targets >= 0).sum(1) - 1,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
