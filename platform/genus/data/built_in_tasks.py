"""Built-in pairs with one right answer: strings of letters, to be copied or reversed."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from genus.data.characters import characters_model
from genus.data.pack_pairs import Pair, pack_pairs
from genus.data.text import END, tokenizer_of_model
from genus.draws import seed_of
from genus.errors import DataError


@dataclass(frozen=True)
class Strings:
    """Uniform letters, of a uniform length of ``shortest`` to ``longest``; no string is in both
    splits. (Of shorter strings there are so few that one split would have to do without.)"""

    task: Literal["copy", "reverse"]
    sizes: Mapping[str, int]
    """Split -> its number of pairs."""
    shortest: int = 4
    longest: int = 16

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.sizes)

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        if source is not None:
            raise DataError(f"{name} is drawn, not fetched: leave --source {source} away")
        tokenizer = tokenizer_of_model(characters_model(string.ascii_lowercase, END), END)
        parts = self._drawn()
        for split, target in out.items():
            texts = parts[split]
            answers = [text[::-1] for text in texts] if self.task == "reverse" else texts
            encoded = zip(tokenizer.encode(texts), tokenizer.encode(answers), strict=True)
            pack_pairs(
                [Pair(target=t, source=s) for s, t in encoded],
                target,
                vocabulary=tokenizer.vocabulary,
                end=tokenizer.end,
                tokenizer=tokenizer,
                lengths={"source": self.longest, "target": self.longest + 1},
                name=name,
            )

    def _drawn(self) -> dict[str, list[str]]:
        """Different strings, dealt to the splits in the order of drawing."""
        rng = np.random.default_rng(seed_of("strings", self.longest))
        letters = np.array(list(string.ascii_lowercase))
        found: dict[str, None] = {}
        while len(found) < sum(self.sizes.values()):
            found["".join(rng.choice(letters, rng.integers(self.shortest, self.longest + 1)))] = (
                None
            )
        texts, parts = [*found], {}
        for split, size in self.sizes.items():
            parts[split], texts = texts[:size], texts[size:]
        return parts
