"""Stacked digits: images by rule, out of the table's own splits, without labels."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from genus.data import datasets
from genus.data.built_in import PackagedTable
from genus.data.built_in_stacked import MODES, StackedDigits
from genus.data.manifest import Manifest
from genus.data.stream import DataConfig, iterate_once, read_info
from genus.errors import DataError

SIDE, FILE = 3, "toy.csv.gz"


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StackedDigits, np.ndarray]:
    """40 images, each of one colour of its own, as a built-in table and stacked."""
    rows = [[number] * SIDE**2 + [number % 2] for number in range(40)]
    csv = "\n".join(",".join(map(str, row)) for row in rows)
    table = PackagedTable(
        package="toy-digits",
        folder="toy_digits",
        file=FILE,
        sha256=hashlib.sha256(csv.encode()).hexdigest(),
        header=0,
        classes=("even", "odd"),
        test=10,
        side=SIDE,
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE).write_bytes(gzip.compress(csv.encode()))
    stacked = StackedDigits("toy", table, {"train": 60, "test": 30})
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(datasets.BUILT_IN, "toy", table)
    monkeypatch.setitem(datasets.BUILT_IN, "stacked", stacked)
    for name in ("toy", "stacked"):
        datasets.fetch(name, source=tmp_path / "mine")
    return stacked, np.arange(40)


def images(url: str) -> np.ndarray:
    (batch,) = iterate_once(DataConfig(url=url), 1000)
    assert set(batch.fields) == {"image"}
    return batch["image"].numpy()


def test_channels_are_digits_of_the_same_split(digits: tuple[StackedDigits, np.ndarray]) -> None:
    stacked, colours = digits
    parts = {}
    for split, count in (("train", 60), ("test", 30)):
        own = images(f"stacked/{split}")
        assert own.shape == (count, 3, SIDE, SIDE)
        assert (own == own[:, :, :1, :1]).all()  # each channel is one whole image
        (table,) = iterate_once(DataConfig(url=f"toy/{split}"), 1000)
        there = np.unique(table["image"].numpy())
        assert set(np.unique(own)) <= set(there)
        chosen = stacked.chosen(split, len(there))
        assert np.array_equal(own[:, :, 0, 0], np.sort(there)[chosen])  # the table is in order
        parts[split] = there
    assert sorted(np.concatenate([*parts.values()])) == colours.tolist()


def test_what_the_manifest_says(digits: tuple[StackedDigits, np.ndarray]) -> None:
    manifest = Manifest.load(datasets.resolve("stacked"))
    assert (manifest.modes, manifest.classes, manifest.channels) == (MODES, (), 3)
    info = read_info(DataConfig(url="stacked"))
    assert (info.classes, info.shape) == (0, (3, SIDE, SIDE))
    assert Manifest.load(datasets.resolve("toy")).modes == ""


def test_the_rule_is_the_same_for_ever_and_its_modes_are_equally_probable() -> None:
    real = datasets.BUILT_IN["stacked-mnist"]
    assert isinstance(real, StackedDigits)
    chosen = real.chosen("train", 4000)
    assert chosen.shape == (50_000, 3)
    assert chosen[:2].tolist() == FIRST
    assert not np.array_equal(chosen[:25_600], real.chosen("test", 4000))
    assert (chosen.min(), chosen.max()) == (0, 3999)
    modes = (chosen // 400) @ [100, 10, 1]  # as where the digits lie in order, 400 of each
    assert stats.chisquare(np.bincount(modes, minlength=1000)).pvalue > 1e-3
    fewer = replace(real, sizes={"train": 7}).chosen("train", 4000)
    assert np.array_equal(fewer, chosen[:7])


FIRST = [[1930, 2469, 1471], [669, 1567, 3043]]


def test_a_wrong_source_is_refused(
    digits: tuple[StackedDigits, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "mine" / FILE).write_bytes(gzip.compress(b"1,2,0"))
    with pytest.raises(DataError, match=f"{FILE} is not the original"):
        datasets.fetch("stacked", tmp_path / "elsewhere", tmp_path / "mine")


@pytest.mark.slow
def test_stacked_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one: what is in a channel is in the table, and as often as chance has it."""
    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    known = {}
    for batch in iterate_once(DataConfig(url="mnist-5k"), 500):
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            known[image.numpy().tobytes()] = label
    counts = np.zeros(1000, int)
    for batch in iterate_once(DataConfig(url="stacked-mnist"), 1000):
        for image in batch["image"].contiguous().numpy():
            red, green, blue = (known[channel.tobytes()] for channel in image)
            counts[100 * red + 10 * green + blue] += 1
    assert counts.sum() == 50_000
    assert stats.chisquare(counts).pvalue > 1e-3
    assert read_info(DataConfig(url="stacked-mnist/test")).samples == 25_600
    assert read_info(DataConfig(url="stacked-mnist/test")).samples == 25_600
