"""The decoder-only transformer: by configuration GPT-2 or Llama."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.roles import Roles
from genus.networks.transformer.attention import View
from genus.networks.transformer.block import Block, initialise, make_norm
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.config import BlockConfig
from genus.networks.transformer.scores import TokenScores, token_scores
from genus.networks.transformer.sight import cached_view, causal_view, check_length


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig):
    """A decoder-only transformer."""

    def build(self, *, vocabulary: int, length: int, classes: int = 0) -> Transformer:
        """The network for sequences of ``length`` tokens out of ``vocabulary``.

        ``length`` bounds learned positions; rotary ones have no bound. ``classes`` 0 means
        unconditional.
        """
        return Transformer(self, vocabulary=vocabulary, length=length, classes=classes)


class Transformer(nn.Module):
    """Embeddings -> ``depth`` causal blocks -> norm -> logits; sizes as in ``build``.

    With ``classes`` the class's vector stands in front of the tokens, where text has a token that
    begins it: T tokens have T + 1 outputs, of which the first predicts the first token. With
    ``cross`` the blocks attend to a memory, too.
    """

    def __init__(
        self,
        config: BlockConfig,
        *,
        vocabulary: int,
        length: int,
        classes: int = 0,
        cross: bool = False,
    ) -> None:
        super().__init__()
        if vocabulary < 1 or length < 1 or classes < 0:
            raise ConfigError(
                "transformer: vocabulary and length are at least 1, classes at least 0"
            )
        self.config = config
        self.length = length
        self.classes = classes
        self.embedding = nn.Embedding(vocabulary, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(length, config.width) if learned else None
        self.table = nn.Embedding(classes + 1, config.width) if classes else None
        self.blocks = nn.ModuleList(Block(config, i, cross=cross) for i in range(config.depth))
        self.norm = make_norm(config)
        self.head = None if config.tied else nn.Linear(config.width, vocabulary, bias=False)
        initialise(self, config.depth, cross=cross)

    @property
    def roles(self) -> Roles:
        """Reads by its embeddings, and writes by them where it is tied."""
        writes = [] if self.head is None else [self.head.weight]
        return Roles(writes=writes, width=self.config.width)

    def forward(
        self,
        tokens: Tensor,
        *,
        targets: Tensor | None = None,
        label: Tensor | None = None,
        document: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor | TokenScores:
        """Logits (B, T, V) in float32 or more, or the scores of ``targets`` (B, T).

        tokens (B, T) int64. With ``classes`` the class is in front and T is one more than the
        tokens, which may be (B, 0); ``label`` (B,), None or ``classes`` meaning no class.
        targets: -1 does not count.
        document (B, T): integers that change at every new document; tokens see their own only.
        memory (B, S, D) and memory_mask (B, S), True where real: for blocks with cross-attention.
        cache: continues what it holds; the label and the memory are given with the first tokens.
        lengths (B,): real tokens of each row, at least 1, where rows are padded on the right.
        last_only: logits (B, 1, V) of the last real position of each row.
        """
        first = cache is None or cache.empty
        x = self.embedding(tokens)
        if self.table is not None and first:
            if label is None:
                label = torch.full((len(tokens),), self.classes, device=tokens.device)
            x = torch.cat([self.table(label)[:, None], x], 1)
            lengths = None if lengths is None else lengths + 1
        elif label is not None:
            raise ConfigError(
                "transformer: a label was given, but the network has no classes, or its cache "
                "holds the label already"
            )
        positions, view = self.look(x, document, cache, lengths)
        if self.positions is not None:
            x = x + self.positions(positions)
        view = with_memory(view, memory, memory_mask)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, view)
        if cache is not None:
            cache.advance(x.shape[1], lengths)
        if last_only:
            rows = torch.arange(len(x), device=x.device)
            x = x[:, -1:] if lengths is None else x[rows, lengths - 1][:, None]
        x = self.norm(x)
        # Not by the head's own call: scores need the weight itself. Whoever shards the network
        # must leave the head to its root, which is gathered during all of this call.
        weight = self.embedding.weight if self.head is None else self.head.weight
        if targets is not None:
            return token_scores(x, weight, targets)
        logits = F.linear(x, weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def look(
        self, x: Tensor, document: Tensor | None, cache: Cache | None, lengths: Tensor | None
    ) -> tuple[Tensor, View]:
        """Positions of the tokens x (B, T, D), and what they see."""
        if cache is None:
            needed = x.shape[1]
            positions, view = causal_view(self.config, x, document)
        else:
            if document is not None:
                raise ConfigError("transformer: packed documents and a cache do not go together")
            needed = cache.length if cache.static else cache.used + x.shape[1]
            positions, view = cached_view(self.config, x, cache, lengths)
        if self.positions is not None:
            check_length(needed, self.length)
        return positions, view


def with_memory(view: View, memory: Tensor | None, mask: Tensor | None) -> View:
    """The view with a memory (B, S, D) to cross to, or with the one that its cache holds."""
    cache = view.cache
    if memory is None and (cache is None or not cache.memory):
        return view
    if memory is None:
        assert cache is not None
        mask = cache.memory_mask
    elif cache is not None:
        cache.memory, cache.memory_mask = [], mask
    return replace(
        view, memory=memory, memory_mask=None if mask is None else mask[:, None, None, :]
    )
