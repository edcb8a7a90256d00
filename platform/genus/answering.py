"""Answers to the sources of a test set: by a model, and by baselines that any model should beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.data.batch import Batch
from genus.data.stream import DataConfig, iterate_once
from genus.data.text import Tokenizer
from genus.evaluate.answers import Answers, errors_of
from genus.evaluate.nearest import nearest, signal_vectors, token_vectors
from genus.objectives.phase import CanTranslate, Networks, SampleOptions

READ = 500
"""Pairs at once."""
MOST = 100_000
"""Training pairs that the nearest one is looked for among: the first ones as stored."""


def compared(found: Sequence[Tensor], right: Sequence[Tensor], tokenizer: Tokenizer) -> Answers:
    """Rows of tokens, found and right, as texts and errors."""
    edits = [errors_of(one, other, tokenizer.end) for one, other in zip(found, right, strict=True)]
    return Answers(
        [tokenizer.decode(row.numpy()) for rows in found for row in rows],
        [tokenizer.decode(row.numpy()) for rows in right for row in rows],
        torch.cat([errors for errors, _ in edits]),
        torch.cat([tokens for _, tokens in edits]),
    )


def answered(
    objective: CanTranslate,
    networks: Networks,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    options: SampleOptions,
) -> Answers:
    """The model's."""
    found, right = [], []
    for batch in batches:
        found.append(objective.translate(networks, batch, options).cpu())
        right.append(batch["target"].cpu())
    return compared(found, right, tokenizer)


def copied(test: DataConfig, count: int, tokenizer: Tokenizer) -> Answers:
    """The source itself, of sources that are tokens of the target's tokenizer."""
    batches = list(iterate_once(test, READ, limit=count))
    return compared(
        [batch["source"] for batch in batches], [batch["target"] for batch in batches], tokenizer
    )


def most_similar(
    train: DataConfig, test: DataConfig, count: int, tokenizer: Tokenizer, source_vocabulary: int
) -> Answers:
    """The target of the training pair with the most similar source: by the cosine of TF-IDF vectors
    of tokens, by the correlation of images, or of sounds stretched to one length."""
    asked = list(iterate_once(test, READ, limit=count))
    targets: list[Tensor] = []
    if "source" in asked[0]:
        sources = []
        for batch in _training(train):
            sources.append(batch["source"])
            targets.append(batch["target"])
        questions = _stacked(batch["source"] for batch in asked)
        known, wanted = token_vectors(_stacked(sources), questions, source_vocabulary)
        best = nearest([known], wanted)
    else:

        def blocks() -> Iterator[Tensor]:
            for batch in _training(train):
                targets.append(batch["target"])
                yield signal_vectors(batch)

        best = nearest(blocks(), torch.cat([signal_vectors(batch) for batch in asked]))
    right = _stacked(batch["target"] for batch in asked)
    return compared([_stacked(targets)[best]], [right], tokenizer)


def _training(train: DataConfig) -> Iterator[Batch]:
    return islice(iterate_once(train, READ), MOST // READ)


def _stacked(parts: Iterable[Tensor]) -> Tensor:
    """Rows of tokens (N, T) of parts that may be padded to different lengths."""
    parts = list(parts)
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=-1) for part in parts])
