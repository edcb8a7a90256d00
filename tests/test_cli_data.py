"""``genus data`` as users call it, on folders and on a real bucket."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genus.cli import main
from genus.data.manifest import Manifest
from genus.data.store import Folder, open_store
from genus.data.stream import DataConfig, open_stream

DATA = Path(__file__).parent / "data"


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command says; AssertionError if it ends with another code."""
    assert main(["data", *words]) == code
    out, err = capsys.readouterr()
    return out + err


def test_pack_verify_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        path = tmp_path / "photos" / ("cat" if number % 3 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8 + number, 10, 3), 20 * number, np.uint8)).save(path)
    out = str(tmp_path / "out")
    said(capsys, "pack", str(tmp_path / "photos"), "--out", out, "--shard-size", "5")
    assert f"{out}: sound" in said(capsys, "verify", out, "--decode")
    sheet = tmp_path / "sheet.png"
    text = said(capsys, "inspect", out, "--sheet", str(sheet), "--n", "9")
    for part in ("12", "cat", "dog", "8 to 19", f"{sheet}: 9 images"):
        assert part in text
    with Image.open(sheet) as image:
        assert min(image.size) > 100
    shard = tmp_path / "out" / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    shard.write_bytes(content)
    text = said(capsys, "verify", out, code=1)
    assert "000001.tar" in text
    assert "faults" in text
    assert "no data at" in said(capsys, "verify", str(tmp_path / "none"), code=2)


def test_a_bucket_is_indexed_verified_and_inspected(
    bucket_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, folder = open_store(bucket_url), Folder(DATA / "fashion-1000")
    for name in folder.names():
        if name.endswith(".tar"):
            bucket.write(name, folder.read_all(name))
    assert "1,000 samples in 8 shards" in said(capsys, "index", bucket_url)
    assert "sound" in said(capsys, "verify", bucket_url, "--decode", "--workers", "2")
    assert "1,000" in said(capsys, "inspect", bucket_url, "--sheet", str(tmp_path / "sheet.png"))
    bucket.write("000002.tar", folder.read_all("000001.tar"))
    assert "000002.tar" in said(capsys, "verify", bucket_url, code=1)


def test_packed_text_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    text = DATA / "shakespeare.txt"
    said(capsys, "pack-text", str(text), "--out", str(out), "--separator", "\n\n")
    assert "sound" in said(capsys, "verify", str(out))
    assert "257" in said(capsys, "inspect", str(out))
    manifest = Manifest.load(Folder(out))
    stream = open_stream(DataConfig(url=str(out), size=32, lanes=4), batch=8, seed=0)
    assert stream.info.fields == ("tokens", "document")
    assert (stream.info.vocabulary, stream.info.length) == (257, 32)
    batch = next(iter(stream))
    assert batch["tokens"].shape == (8, 33)
    stored = np.load(out / manifest.shards[0].url)
    for number, row in zip(batch.ids.tolist(), batch["tokens"].tolist(), strict=True):
        assert row == stored[32 * number : 32 * number + 33].tolist()


def test_a_folder_that_was_packed_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(DATA / "fashion-1000", out)
    text = said(capsys, "pack-text", str(DATA / "shakespeare.txt"), "--out", str(out), code=2)
    assert "exists" in text
