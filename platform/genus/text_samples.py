"""Texts drawn while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genus.atomic import replacing
from genus.data.datasets import tokenizer_of
from genus.data.stream import DataConfig
from genus.data.text import Tokenizer
from genus.errors import DataError
from genus.objectives.phase import CanSample, SampleOptions
from genus.run import Run
from genus.sampling import sample_batches
from genus.tracking import BETWEEN_TEXTS


def prompt_of(tokenizer: Tokenizer, text: str | None) -> Tensor:
    """Tokens (T,) of a prompt. Without one: the token that ends documents, which the next one
    follows, or a line's end. DataError where there is none, or the text has no tokens."""
    if text:
        return torch.tensor(list(next(iter(tokenizer.encode([text])))), dtype=torch.int64)
    if tokenizer.end >= 0:
        return torch.tensor([tokenizer.end])
    return prompt_of(tokenizer, "\n")


class TextSamples:
    """An evaluation for the loop: texts drawn with the averaged weights, shared by the ranks."""

    name = "samples"

    def __init__(
        self,
        run: Run,
        networks: Mapping[str, nn.Module],
        objective: CanSample,
        *,
        every: int,
        data: DataConfig,
        count: int = 4,
    ) -> None:
        """Never due where the data don't say which tokenizer made them, which the log says."""
        self.every = every
        self._run, self._networks, self._objective = run, networks, objective
        self._count = max(count, run.world.size)
        try:
            self._tokenizer = tokenizer_of(data.url)
            self._options = SampleOptions(prompt=prompt_of(self._tokenizer, None))
        except DataError as error:
            run.say(f"no samples of text: {error}")
            self.every = 0
        else:
            objective.plan(self._options)  # a bad setting is found now, not at the first samples

    def run(self, samples: int) -> Mapping[str, Any]:
        """Draw with the same seeds every time; returns the file's path."""
        world = self._run.world
        mine = range(world.rank, self._count, world.size)
        parts = sample_batches(
            self._objective,
            self._networks,
            list(mine),
            None,
            seed=self._run.seed,
            device=world.device,
            options=self._options,
        )
        texts = [self._tokenizer.decode(row.tolist()) for part in parts for row in part]
        everybody = world.gather(texts)
        path = f"samples/{samples:012d}.txt"
        if world.is_first:
            ordered = [everybody[i % world.size][i // world.size] for i in range(self._count)]
            try:
                with replacing(self._run.folder / path) as temporary:
                    temporary.write_text(BETWEEN_TEXTS.join(ordered) + "\n")
            except OSError as error:  # no reason to end a run
                self._run.say(f"no samples: {error}")
                return {"error": str(error)}
        return {"text": path}
