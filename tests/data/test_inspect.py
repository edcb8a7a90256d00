"""The report on a data set, and its contact sheet."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genus.data.index import index_folder
from genus.data.inspect import CAPTION, contact_sheet, inspect
from genus.data.manifest import Manifest
from genus.data.store import open_store
from genus.errors import DataError
from genus.evaluate.grid import GAP

FASHION = Path(__file__).parent / "fashion-1000"


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def image(height: int, width: int, colour: tuple[int, ...] | int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    mode = "L" if isinstance(colour, int) else "RGB"
    Image.new(mode, (width, height), colour).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of three sizes, one of them grey, two with a text, in two shards."""
    red = image(30, 40, (255, 0, 0))
    write_shard(tmp_path / "0.tar", {"a.png": red, "a.cls": b"1", "a.txt": b"a red\n flag"})
    grey = image(20, 80, 9)
    blue = image(200, 100, (0, 0, 255), "JPEG")
    members = {"b.png": grey, "b.cls": b"1", "c.jpg": blue, "c.cls": b"0", "c.txt": b"sea " * 90}
    write_shard(tmp_path / "1.tar", members)
    index_folder(tmp_path, name="mixed", classes=["water", "flag"])
    return tmp_path


def test_report(mixed: Path) -> None:
    rows = [line.split("  ", 1) for line in str(inspect(str(mixed))).splitlines() if line]
    table = {name: value.strip() for name, value in rows}
    assert table["data set"] == "mixed"
    assert table["where"] == str(mixed)
    assert table["fingerprint"] == Manifest.load(open_store(str(mixed))).fingerprint()
    assert table["samples"] == "3"
    assert table["shards"].startswith("2, ")
    assert table["samples a shard"] == "1 to 2, median 2"  # of two values: rounded to even
    assert table[".cls"] == "3 samples (all)"
    assert table[".txt"] == "2 samples"
    assert table["images"] == "3: 1 grey, 2 in colour"
    assert table["width"] == "40 to 100, median 80"
    assert table["height"] == "20 to 200, median 30"
    assert table["width / height"] == "0.50 to 4.00, median 1.33"
    assert table["class 0"].split() == ["1", "water"]
    assert table["class 1"].split() == ["2", "flag"]
    assert table["sample 0, text"] == "a red flag"
    assert table["sample 2, text"].endswith("sea s...")
    assert len(table["sample 2, text"]) == 100


def test_sizes_that_are_all_alike_are_one_number() -> None:
    report = str(inspect(str(FASHION)))
    assert "\nwidth           28\n" in report
    assert report.count("class ") == 10


def test_contact_sheet_shows_the_middle_of_each_image(mixed: Path, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert contact_sheet(str(mixed), path) == 3
    sheet = np.asarray(Image.open(path)).astype(int)
    height, side = 112 + CAPTION, 112
    assert sheet.shape == (2 * height + GAP, 2 * side + GAP, 3)
    assert (sheet[:112, :side] == (255, 0, 0)).all()
    assert (sheet[:112, side + GAP :] == 9).all()
    assert np.abs(sheet[height + GAP :][:112, :side] - (0, 0, 255)).max() <= 2  # it was a JPEG
    caption = sheet[112:height, :side]
    assert caption.min() < 100  # black on white
    assert (caption[[0, -1]] == 255).all()


def test_contact_sheet_keeps_small_images_exact(tmp_path: Path) -> None:
    assert contact_sheet(str(FASHION), tmp_path / "sheet.png", 4) == 4
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (112 + CAPTION) + GAP, 2 * 112 + GAP, 3)
    shown = sheet[:112, :112, 0]
    assert (shown.reshape(28, 4, 28, 4) == shown[::4, ::4].reshape(28, 1, 28, 1)).all()
    # four images, one every two shards of 125
    for shard, top, left in ((0, 0, 0), (2, 0, 1), (4, 1, 0), (6, 1, 1)):
        with tarfile.open(FASHION / f"{shard:06d}.tar") as tar:
            first = next(member for member in tar if member.name.endswith(".png"))
            pixels = np.asarray(Image.open(io.BytesIO(tar.extractfile(first).read())))
        tile = sheet[top * (112 + CAPTION + GAP) :, left * (112 + GAP) :][:112:4, :112:4, 0]
        assert np.array_equal(tile, pixels)


def test_without_images(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.txt": b"words"})
    index_folder(tmp_path)
    assert "width" not in str(inspect(str(tmp_path)))
    with pytest.raises(DataError, match="no images"):
        contact_sheet(str(tmp_path), tmp_path / "sheet.png")
    with pytest.raises(DataError, match="no data"):
        inspect(str(tmp_path / "nowhere"))
