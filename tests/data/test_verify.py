"""Every kind of damage is found and named."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genus.data import verify as verify_module
from genus.data.index import index_folder
from genus.data.inspect import inspect
from genus.data.manifest import Manifest
from genus.data.pack_tokens import pack_tokens
from genus.data.shard_index import ShardIndex
from genus.data.store import open_store
from genus.data.token_shard import BLOCK
from genus.data.verify import Fault, verify
from genus.errors import DataError

FASHION = Path(__file__).parent / "fashion-1000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(FASHION, tmp_path / "data")
    return tmp_path / "data"


def faults(folder: Path, **options: bool) -> list[tuple[str, str, str]]:
    return [dataclasses.astuple(fault) for fault in verify(str(folder), 1, **options)]


def change(folder: Path, shard: str, at: int, data: bytes, checksum: bool = True) -> None:
    """Overwrite bytes of a shard; ``checksum`` writes the new sha256 into the manifest."""
    with (folder / shard).open("r+b") as file:
        file.seek(at)
        file.write(data)
    if checksum:
        path = folder / "manifest.json"
        body = json.loads(path.read_text())
        entry = next(e for e in body["shardlist"] if e["url"] == shard)
        entry["checksum"] = "sha256:" + hashlib.sha256((folder / shard).read_bytes()).hexdigest()
        path.write_text(json.dumps(body))


def index_of(folder: Path, shard: str) -> ShardIndex:
    return ShardIndex.load(open_store(str(folder)), shard)


def rewrite(folder: Path, name: str, **arrays: np.ndarray) -> None:
    index = index_of(folder, name)
    names = ("keys", "extensions", "offset", "size", "crc", "shape", "label")
    index = ShardIndex.of(**({n: getattr(index, n) for n in names} | arrays))
    (folder / name).write_bytes(index.to_bytes())


def test_sound_data_have_no_faults(folder: Path) -> None:
    assert faults(folder) == []
    assert faults(folder, decode=True) == []


@pytest.mark.parametrize("piece", [512, 3000, 10**6])
def test_pieces_of_any_size_give_the_same(
    folder: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "PIECE", piece)
    assert faults(folder) == []
    index = index_of(folder, "000002.index.npz")
    column = index.extensions.tolist().index("png")
    change(folder, "000002.tar", int(index.offset[7, column]) + 50, b"damage", checksum=False)
    assert faults(folder) == [
        ("000002.tar", "", "its content is not what the manifest says (sha256)"),
        (
            "000002.tar",
            f"sample {index.keys[7]}.png",
            "its bytes are not those indexed (crc32)",
        ),
    ]


def test_damage_between_members_is_found(folder: Path) -> None:
    change(folder, "000001.tar", 0, b"x", checksum=False)  # in a name
    assert faults(folder) == [
        ("000001.tar", "", "its content is not what the manifest says (sha256)")
    ]


def test_missing_and_cut_shards(folder: Path) -> None:
    (folder / "000003.tar").unlink()
    size = (folder / "000004.tar").stat().st_size
    with (folder / "000004.tar").open("r+b") as file:
        file.truncate(size // 2)
    found = faults(folder)
    gone = [fault for fault in found if fault[0] == "000003.tar"]
    assert len(gone) == 1
    assert "000003.tar" in gone[0][2]
    cut = [fault for fault in found if fault[0] == "000004.tar"]
    index = index_of(folder, "000004.index.npz")
    beyond = int((index.offset + index.size > size // 2).sum())
    assert sum(what == "it lies beyond the end of the shard" for _, _, what in cut) == beyond
    assert f"it is {size // 2} bytes long, the manifest says {size}" in {what for *_, what in cut}
    assert len(found) == 1 + beyond + 2  # its size and its sha256


def test_wrong_indexes(folder: Path) -> None:
    (folder / "000000.index.npz").unlink()
    (folder / "000001.index.npz").write_bytes(b"no index")
    labels = index_of(folder, "000002.index.npz").label.copy()
    labels[5] += 1
    rewrite(folder, "000002.index.npz", label=labels)
    shutil.copy(folder / "000004.index.npz", folder / "000003.index.npz")
    found = faults(folder)
    assert next(what for name, _, what in found if name == "000000.tar").startswith("its index")
    assert next(what for name, _, what in found if name == "000001.tar").startswith("its index")
    label, key = int(labels[5]), index_of(folder, "000002.index.npz").keys[5]
    what = f"it is {label - 1}, its index says {label}"
    assert [f for f in found if f[0] == "000002.tar"] == [("000002.tar", f"sample {key}.cls", what)]
    assert sum("crc32" in what for shard, _, what in found if shard == "000003.tar") > 100


def test_manifest_that_does_not_add_up(folder: Path) -> None:
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body["total"] += 1
    body["shardlist"][6]["nsamples"] -= 3
    path.write_text(json.dumps(body))
    assert verify(str(folder), 1) == [
        Fault("", "", "it says 1001 samples, its shards have 997"),
        Fault("000006.tar", "", "its index has 125 samples, the manifest says 122"),
    ]
    assert str(verify(str(folder), 1)[0]).startswith("manifest: it says")


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_do_not_decode(tmp_path: Path, workers: int) -> None:
    """Their checksums are right: they were packed so."""
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 90).save(buffer, "JPEG")
    whole = buffer.getvalue()
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in {"a.jpg": whole, "b.jpg": whole[:-300], "c.jpg": whole}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index_folder(tmp_path)
    shape = index_of(tmp_path, "0.index.npz").shape.copy()
    shape[2] = (1, 40, 30)
    rewrite(tmp_path, "0.index.npz", shape=shape)
    assert verify(str(tmp_path), workers) == []
    first, second = verify(str(tmp_path), workers, decode=True)
    assert (first.sample, second.sample) == ("sample b.jpg", "sample c.jpg")
    assert "no readable image" in first.what
    assert second.what == "it is 30 x 40, its index says 40 x 30"
    assert str(second) == "0.tar, sample c.jpg: it is 30 x 40, its index says 40 x 30"


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data"):
        verify(str(tmp_path / "nowhere"))


def test_tokens_are_checked_in_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    documents = [np.arange(n) % 256 for n in (9000, 20_000, 5000)]
    pack_tokens(documents, folder, vocabulary=256, shard_tokens=17_000)
    shard = Manifest.load(open_store(str(folder))).shards[0]
    assert verify(str(folder), 1) == []
    assert "tokens" in str(inspect(str(folder)))
    with (folder / shard.url).open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\xff")
    whole, block = verify(str(folder), 1)
    assert "sha256" in whole.what
    first = (shard.nsamples - 1) * 2 // BLOCK * BLOCK // 2
    assert (block.shard, block.sample) == (shard.url, f"tokens from {first}")
    (folder / shard.index).unlink()
    assert verify(str(folder), 1)[1].what.startswith("its index: ")
