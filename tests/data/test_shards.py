"""Shards, index and manifest: packed by us, read by webdataset, and the other way round."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray
from PIL import Image

from genus.data.decode import decode_image
from genus.data.index import index_folder, index_shard
from genus.data.manifest import DataInfo, Manifest, info_of
from genus.data.pack import pack, read_idx
from genus.data.reader import Reader
from genus.data.shard_index import ShardIndex
from genus.data.store import Folder
from genus.errors import DataError

FASHION = Path(__file__).parent / "fashion-1000"


def random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def open_reader(folder: Path) -> Reader:
    store = Folder(folder)
    return Reader([(store, Manifest.load(store))])


def read_all(folder: Path) -> list[dict[str, bytes]]:
    """Field -> data of every sample; the label as the index has it."""
    reader = open_reader(folder)
    found = []
    for sample in reader.read(np.arange(reader.sizes.sum())):
        assert isinstance(sample, tuple)
        number, fields, data = sample
        members = {name: part for (name, _), part in zip(fields, data, strict=True)}
        found.append(members | ({"label": str(number).encode()} if number >= 0 else {}))
    return found


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = head + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# ---- the shipped data ----------------------------------------------------------------------------


def test_shipped_shards_are_plain_webdataset() -> None:
    urls = [str(path) for path in sorted(FASHION.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = read_all(FASHION)
    assert len(ours) == len(theirs) == 1000
    reader = open_reader(FASHION)
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine == {"label": other["cls"], "image": other["png"]}
        assert reader.place(number).endswith(f"sample {other['__key__']}")


def test_shipped_manifest_tells_the_truth() -> None:
    manifest = Manifest.load(Folder(FASHION))
    assert manifest.counts == (100,) * 10
    assert manifest.classes[9] == "Ankle boot"
    assert (manifest.channels, manifest.height, manifest.width) == (1, 28, 28)
    assert manifest.fields == {"cls": 1000, "png": 1000}
    for shard in manifest.shards:
        data = (FASHION / shard.url).read_bytes()
        assert shard.filesize == len(data)
        assert shard.checksum == "sha256:" + hashlib.sha256(data).hexdigest()
        with (FASHION / shard.url).open("rb") as file:
            again = index_shard(file, shard.url)
        stored = ShardIndex.load(Folder(FASHION), shard.index)
        assert shard.nsamples == len(again) == 125
        for name in ("keys", "extensions", "table"):
            assert np.array_equal(getattr(again, name), getattr(stored, name)), name


def test_shipped_shards_are_mixed() -> None:
    for path in FASHION.glob("*.npz"):
        assert (
            np.bincount(ShardIndex.load(Folder(FASHION), path.name).label, minlength=10).min() >= 4
        )


# ---- tars of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile_with_long_names_and_folders(tmp_path: Path, form: int) -> None:
    long = "a/" + "very-" * 40 + "long/0"
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "__meta__/x.txt", b"skipped, as webdataset does")
        add(tar, "README", b"no extension")
        add(tar, f"{long}.PNG", png(random(4, 6)))
        add(tar, f"{long}.cls", b"3")
        add(tar, "grün.seg.png", png(random(4, 6, 3)))
        add(tar, "grün.png", png(random(4, 6, 3)))
    manifest = index_folder(tmp_path)
    index = ShardIndex.load(Folder(tmp_path), "x.index.npz")
    assert index.keys.tolist() == [long, "grün"]
    assert index.extensions.tolist() == ["cls", "png", "seg.png"]
    assert (index.size < 0).tolist() == [[False, False, True], [True, False, False]]
    assert index.shape.tolist() == [[1, 4, 6], [3, 4, 6]]
    assert index.label.tolist() == [3, -1]
    assert manifest.counts == (0, 0, 0, 1)
    assert manifest.channels == 3
    theirs = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    for mine, other in zip(read_all(tmp_path), theirs, strict=True):
        names = {"png": "image", "cls": "label", "seg.png": "seg"}
        assert mine == {names[n]: d for n, d in other.items() if not n.startswith("__")}


def test_gnu_tar(tmp_path: Path) -> None:
    names = [f"{'long' * 30}{i}.txt" for i in range(3)]
    for name in names:
        (tmp_path / name).write_text(name)
    subprocess.run(["tar", "cf", "x.tar", *names], cwd=tmp_path, check=True)
    index_folder(tmp_path)
    assert read_all(tmp_path) == [{"text": name.encode()} for name in names]


def test_bad_tars_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.tar"):
        index_folder(tmp_path)
    shard = tmp_path / "x.tar"
    data = (FASHION / "000000.tar").read_bytes()
    for bad in (data[: 512 * 3 + 100], gzip.compress(data), b"x" * 2000):
        shard.write_bytes(bad)
        with pytest.raises(DataError, match=r"x\.tar"):
            index_folder(tmp_path)
    for name, content in (("0.cls", b"shoe"), ("0.cls", b"-1"), ("0.png", b"no image")):
        with tarfile.open(shard, "w") as tar:
            add(tar, name, content)
        with pytest.raises(DataError, match=rf"x\.tar, member {name}"):
            index_folder(tmp_path)
    with tarfile.open(shard, "w") as tar:
        add(tar, "0.cls", b"1")
        add(tar, "0.cls", b"2")
    with pytest.raises(DataError, match=r"sample 0: \.cls and \.cls are the same field"):
        index_folder(tmp_path)


def test_a_damaged_or_cut_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    data = bytearray((FASHION / "000000.tar").read_bytes())
    header = data.index(b"ustar", len(data) // 2) - 257
    for bad in (data[: header + 100], data[:header] + b"x" + data[header + 1 :]):
        (tmp_path / "x.tar").write_bytes(bad)
        with pytest.raises(DataError, match=rf"x\.tar .*byte {header}"):
            index_folder(tmp_path)
    (tmp_path / "x.tar").write_bytes(data[:header])  # a tar without its two blocks of zeros
    assert 0 < index_folder(tmp_path).total < 125


def test_two_members_for_one_field_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "0.png", png(random(2, 2)))
        add(tar, "0.jpg", png(random(2, 2)))
    with pytest.raises(DataError, match=r"sample 0: \.png and \.jpg are the same field"):
        index_folder(tmp_path)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "0.txt", b"caption")
        add(tar, "1.text.npy", b"embedding")
    with pytest.raises(DataError, match="'text' would hold members of two kinds"):
        info_of([index_folder(tmp_path)], "x", 0)


def test_a_broken_manifest_is_made_anew(tmp_path: Path) -> None:
    shutil.copy(FASHION / "000000.tar", tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert index_folder(tmp_path).total == 125


def test_a_class_number_that_is_a_mistake_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "0.cls", b"10000000000000")
    with pytest.raises(DataError, match=r"no class number .* below 1,000,000"):
        index_folder(tmp_path)


# ---- packing -------------------------------------------------------------------------------------


def check_arrays(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> None:
    """Every image is there once, its pixels and label unchanged; keys are places in the source."""
    manifest = Manifest.load(Folder(folder))
    reader = open_reader(folder)
    seen = []
    for sample, members in enumerate(read_all(folder)):
        number = int(reader.place(sample).rsplit(" ", 1)[1])
        pixels = decode_image(members["image"], manifest.channels)
        expected = images[number] if images.ndim == 4 else images[number][..., None]
        assert np.array_equal(pixels.transpose(1, 2, 0), expected)
        assert members.get("label") == (None if labels is None else str(labels[number]).encode())
        seen.append(number)
    assert sorted(seen) == list(range(len(images)))
    assert seen != sorted(seen)  # shuffled


def test_pack_npz(tmp_path: Path) -> None:
    images, labels = random(23, 5, 7, 3), random(23) % 4
    np.savez(tmp_path / "a.npz", x=images, y=labels[:, None])
    manifest = pack(tmp_path / "a.npz", tmp_path / "out", shard_size=10)
    assert [shard.nsamples for shard in manifest.shards] == [10, 10, 3]
    assert manifest.counts == tuple(np.bincount(labels, minlength=4).tolist())
    assert manifest == Manifest.load(Folder(tmp_path / "out"))
    check_arrays(tmp_path / "out", images, labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pack_idx(tmp_path: Path, suffix: str) -> None:
    images, labels = random(12, 4, 4), random(12) % 3
    write_idx(tmp_path / f"t-images-idx3-ubyte{suffix}", images)
    pack(tmp_path / f"t-images-idx3-ubyte{suffix}", tmp_path / "bare")
    check_arrays(tmp_path / "bare", images, None)
    write_idx(tmp_path / f"t-labels-idx1-ubyte{suffix}", labels)
    pack(tmp_path / f"t-images-idx3-ubyte{suffix}", tmp_path / "out", classes=["a", "b", "c"])
    check_arrays(tmp_path / "out", images, labels)
    assert Manifest.load(Folder(tmp_path / "out")).classes == ("a", "b", "c")


def test_pack_folder_keeps_the_bytes(tmp_path: Path) -> None:
    source = tmp_path / "images"
    files: list[bytes] = []
    for i, name in enumerate(["cat/1.png", "cat/deep/2.x.jpg", "dog/3.WEBP", "dog/notes.md"]):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("md"):
            path.write_text("no image")
            continue
        form = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.lower().rsplit(".")[-1]]
        Image.fromarray(random(6 + i, 8, 3)).save(path, form)
        files.append(path.read_bytes())
    (source / "empty").mkdir()
    manifest = pack(source, tmp_path / "out", shuffle_seed=None)
    assert manifest.classes == ("cat", "dog")
    assert manifest.counts == (2, 1)
    assert (manifest.height, manifest.width) == (0, 0)
    members = read_all(tmp_path / "out")
    assert [m["label"] for m in members] == [b"0", b"0", b"1"]
    assert [m["image"] for m in members] == files
    with pytest.raises(DataError, match=r"differ in size: set data\.size"):
        info_of([manifest], "out", 0)
    (source / "loose.png").write_bytes(files[0])
    with pytest.raises(DataError, match=r"loose\.png"):
        pack(source, tmp_path / "out2")
    flat = pack(source / "cat" / "deep", tmp_path / "out3")
    assert flat.classes == ()
    assert flat.fields == {"jpg": 1}
    with pytest.raises(DataError, match=r"8 wide"):
        info_of([flat], "out3", 0)


def test_pack_is_deterministic_and_seeded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=random(20, 3, 3))
    prints = [
        pack(tmp_path / "a.npz", tmp_path / str(i), shuffle_seed=seed).fingerprint()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_pack_is_atomic_and_never_overwrites(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.png").write_bytes(png(random(4, 4)))
    (source / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"images/b\.png: no readable image"):
        pack(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    (source / "b.png").unlink()
    pack(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
    with pytest.raises(DataError, match="exists already"):
        pack(source, tmp_path / "out")
    (tmp_path / "none").mkdir()
    for bad in ("none", "missing", "out/manifest.json"):
        with pytest.raises(DataError):
            pack(tmp_path / bad, tmp_path / "new")
    np.savez(tmp_path / "a.npz", image=random(4, 3, 3).astype(np.float32))
    with pytest.raises(DataError, match="must be uint8"):
        pack(tmp_path / "a.npz", tmp_path / "new")
    np.savez(tmp_path / "a.npz", image=random(4, 3, 3), label=np.eye(4))
    with pytest.raises(DataError, match="integer labels"):
        pack(tmp_path / "a.npz", tmp_path / "new")


def test_idx_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x-images-idx3-ubyte"
    for bad in (b"", b"\0\0\x0d\1\0\0\0\0", struct.pack(">HBBI", 0, 8, 1, 5) + b"123"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="idx3"):
            read_idx(path)


# ---- manifest and info ---------------------------------------------------------------------------


def test_info_round_trip() -> None:
    info = info_of([Manifest.load(Folder(FASHION))], "here", 32)
    assert (info.samples, info.channels, info.resolution, info.classes) == (1000, 1, 32, 10)
    assert info.fields == ("image", "label")
    assert DataInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_indexes_of_earlier_versions_are_read() -> None:
    index = ShardIndex.load(Folder(FASHION), "000000.index.npz")
    names = ("keys", "extensions", "offset", "size", "crc", "shape", "label")
    older = io.BytesIO()
    np.savez_compressed(older, **{name: getattr(index, name) for name in names})
    again = ShardIndex.parse(older.getvalue(), Folder(FASHION), "x")
    for name in names:
        assert np.array_equal(getattr(again, name), getattr(index, name)), name


def test_missing_manifest_and_index_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="genus data index"):
        Manifest.load(Folder(tmp_path))
    with pytest.raises(DataError, match="genus data index"):
        ShardIndex.load(Folder(tmp_path), "0.index.npz")
    (tmp_path / "manifest.json").write_text('{"shardlist": 3}')
    with pytest.raises(DataError, match="genus data index"):
        Manifest.load(Folder(tmp_path))
