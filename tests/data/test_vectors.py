"""Vectors: packed exactly, served exactly, refused where they are none, bad ones stood in for."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from numpy.typing import NDArray

from genus.cli import main
from genus.data.index import index_folder
from genus.data.inspect import contact_sheet, inspect
from genus.data.manifest import DataInfo, Manifest
from genus.data.pack_vectors import pack_vectors, read_table
from genus.data.store import Folder
from genus.data.stream import DataConfig, Stream, iterate_once, open_stream, read_info
from genus.data.vectors import read_into, read_vector, to_bytes
from genus.data.verify import verify
from genus.errors import DataError

FASHION = Path(__file__).parent / "fashion-1000"


def table(rows: int, columns: int = 3, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """53 vectors in 6 shards."""
    pack_vectors(table(53), tmp_path / "packed", shard_size=10)
    return tmp_path / "packed"


# ---- one vector ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 30, 3072])
def test_files_are_numpys_own(length: int) -> None:
    vector = table(1, length)[0]
    assert to_bytes(vector) == npy(vector)
    assert np.array_equal(read_vector(to_bytes(vector)), vector)
    out = np.zeros(length, np.float32)
    read_into(to_bytes(vector), out)
    assert np.array_equal(out, vector)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i4", "u1"])
def test_other_real_types_are_served_as_float32(dtype: str) -> None:
    out = np.zeros(3, np.float32)
    read_into(npy(np.array([1, 2, 250], dtype)), out)
    assert out.tolist() == [1, 2, 250]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no readable vector"),
        (npy(np.zeros(3, np.float32))[:-1], "no readable vector"),
        (npy(np.array([{}, {}, {}], object)), "no readable vector"),  # a pickle
        (npy(np.zeros((3, 1))), "no vector"),
        (npy(np.zeros(3, complex)), "no vector"),
        (npy(np.zeros(4, np.float32)), "of 4 numbers, the data set's have 3"),
        (npy([1, 2, 1e39]), "not finite in float32"),
        (npy([1, 2, np.nan]), "not finite in float32"),
    ],
)
def test_what_is_no_vector_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_into(data, np.zeros(3, np.float32))


# ---- packing -------------------------------------------------------------------------------------


def test_rows_keep_their_order_and_numbers(packed: Path) -> None:
    manifest = Manifest.load(Folder(packed))
    assert (manifest.total, manifest.dims, manifest.fields) == (53, 3, {"vector.npy": 53})
    assert [shard.nsamples for shard in manifest.shards] == [10, 10, 10, 10, 10, 3]
    urls = [str(path) for path in sorted(packed.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [f"{i:08d}" for i in range(53)]
    rows = [np.load(io.BytesIO(sample["vector.npy"])) for sample in theirs]
    assert np.array_equal(np.stack(rows), table(53))
    assert rows[0].dtype == np.float32


def test_the_command_packs_and_describes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.array([[0.5, 10], [1.5, 20], [4, -60]])
    np.save(tmp_path / "a.npy", rows)
    (tmp_path / "a.csv").write_text("0.5,10\n1.5, 2e1\n4,-60\n")
    outs = [str(tmp_path / name) for name in ("npy", "csv")]
    for source, out in zip(("a.npy", "a.csv"), outs, strict=True):
        words = ["data", "pack", str(tmp_path / source), "--out", out, "--shard-size", "2"]
        assert main(words) == 0
    assert main(["data", "verify", outs[0], "--decode", "--workers", "1"]) == 0
    assert main(["data", "inspect", outs[0]]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["number", "0", "0.5", "2", "4"] in said
    assert ["number", "1", "-60", "-10", "20"] in said
    one, other = (Manifest.load(Folder(Path(out))).fingerprint() for out in outs)
    assert one == other
    assert main(["data", "index", outs[0]]) == 0
    assert Manifest.load(Folder(Path(outs[0]))).dims == 2
    words = ["data", "pack", str(tmp_path / "a.npy"), "--out", str(tmp_path / "b"), "--seed", "1"]
    assert main(words) == 2
    assert "unshuffled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([[1, 2], [3, np.nan], [np.inf, 1]], "row 1 .*nan in column 1.* 2 such rows"),
        ([[1, 2], [3, -1e39]], r"row 1 .*-1e\+39 in column 1"),
        ([1.0, 2.0], r"\(N, D\)"),
        (np.zeros((0, 2)), r"\(N, D\)"),
        (np.zeros((2, 0)), r"\(N, D\)"),
        ([["a", "b"]], "real numbers"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, rows: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        pack_vectors(np.array(rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_tables(tmp_path: Path) -> None:
    for name, text in (("a.csv", "x,y\n1,2\n"), ("b.csv", "1,2\n3\n"), ("c.npy", "1,2")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}.*"):
            read_table(tmp_path / name)
    with pytest.raises(DataError, match="header line"):
        read_table(tmp_path / "a.csv")
    np.save(tmp_path / "d.npy", np.array([{}], object))
    with pytest.raises(DataError, match="pickle"):
        read_table(tmp_path / "d.npy")
    with pytest.raises(DataError, match=r"none\.npy"):
        read_table(tmp_path / "none.npy")
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(DataError, match=r"\(N, D\)"):
        pack_vectors(read_table(tmp_path / "e.csv"), tmp_path / "out")


# ---- serving -------------------------------------------------------------------------------------


def seen(stream: Stream, samples: int) -> dict[int, torch.Tensor]:
    found = {}
    for batch in stream:
        assert batch["vector"].dtype == torch.float32
        assert batch["vector"].shape == (len(batch), stream.info.dims)
        found |= dict(zip(batch.ids.tolist(), batch["vector"], strict=True))
        if stream.position >= samples:
            return found
    raise AssertionError


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_serves_what_was_packed(packed: Path, workers: int) -> None:
    stream = open_stream(DataConfig(url=str(packed), workers=workers), batch=8, seed=0)
    info = stream.info
    assert (info.dims, info.resolution, info.channels, info.classes) == (3, 0, 0, 0)
    assert info.fields == ("vector",)
    assert DataInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    found = seen(stream, 64)
    assert sorted(found) == list(range(53))
    for number, vector in found.items():
        assert np.array_equal(vector.numpy(), table(53)[number])


def test_large_batches_cross_from_workers_in_shared_memory(tmp_path: Path) -> None:
    rows = table(40, 9000)  # 32 of them are more than a worker sends through its pipe
    pack_vectors(rows, tmp_path / "out")
    stream = open_stream(DataConfig(url=str(tmp_path / "out"), workers=1), batch=32, seed=0)
    held = seen(stream, 32 * 12)  # more batches than there are pieces of shared memory
    for number, vector in held.items():
        assert np.array_equal(vector.numpy(), rows[number])


def test_labels_and_other_fields_beside_vectors(tmp_path: Path) -> None:
    labels = np.arange(6) % 2
    pack_vectors(table(6), tmp_path / "out", labels=labels, classes=("a", "b"))
    (batch,) = iterate_once(DataConfig(url=str(tmp_path / "out")), 6)
    assert read_info(DataConfig(url=str(tmp_path / "out"))).fields == ("vector", "label")
    assert batch["label"].tolist() == labels.tolist()
    assert np.array_equal(batch["vector"].numpy(), table(6))
    with pytest.raises(DataError, match="as many integer labels"):
        pack_vectors(table(6), tmp_path / "other", labels=labels[:5])
    pixels = next(iter(FASHION.glob("*.tar")))
    with tarfile.open(pixels) as tar:
        image = tar.extractfile(next(m for m in tar if m.name.endswith("png")))
        assert image is not None
        members = {"0.png": image.read(), "0.vector.npy": npy([1.0, 2.0]), "0.txt": b"words"}
    (tmp_path / "both").mkdir()
    write_shard(tmp_path / "both" / "0.tar", members)
    index_folder(tmp_path / "both")
    config = DataConfig(url=str(tmp_path / "both"), size=32, flip=True)
    batch = next(iter(open_stream(config, batch=1, seed=0)))
    assert batch["image"].shape == (1, 1, 32, 32)
    assert batch["vector"].tolist() == [[1, 2]]
    assert read_info(config).dims == 2


@pytest.mark.parametrize("option", [{"size": 32}, {"flip": True}, {"fit": "resize"}])
def test_settings_of_images_are_refused(packed: Path, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(DataError, match=f"data.{name}=.* is for images"):
        read_info(DataConfig(url=str(packed), **option))
    with pytest.raises(DataError, match="is for images"):
        read_info(DataConfig(url=str(packed), bucket_step=8))


def test_mixtures_need_equal_lengths(packed: Path, tmp_path: Path) -> None:
    pack_vectors(table(20, seed=1), tmp_path / "alike")
    pack_vectors(table(20, 4), tmp_path / "longer")
    url = str(packed)
    mixed = open_stream(DataConfig(url=url, also=(str(tmp_path / "alike"),)), batch=8, seed=0)
    both = np.concatenate([table(53), table(20, seed=1)])
    found = seen(mixed, 80)
    assert max(found) > 53
    assert all(np.array_equal(v.numpy(), both[i]) for i, v in found.items())
    with pytest.raises(DataError, match="numbers of a vector of one are 3, of the other 4"):
        read_info(DataConfig(url=url, also=(str(tmp_path / "longer"),)))
    with pytest.raises(DataError, match="the fields"):
        read_info(DataConfig(url=url, also=(str(FASHION),)))


def test_older_manifests(packed: Path) -> None:
    body = json.loads((FASHION / "manifest.json").read_text())
    assert "dims" not in body  # as it was written before there were vectors
    manifest = Manifest.load(Folder(FASHION))
    assert (manifest.dims, manifest.fingerprint()) == (0, "c2cfa9992c8bc60d")
    body = json.loads((packed / "manifest.json").read_text())
    del body["dims"]
    (packed / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match="genus data index"):
        read_info(DataConfig(url=str(packed)))


# ---- bad vectors ---------------------------------------------------------------------------------


@pytest.fixture
def damaged(packed: Path) -> Path:
    """Sample 12 is no array, 25 too short, 31 not finite; 47's bytes were changed behind the
    index's back. The indexes are of those bytes, but the manifest is that of the sound data."""
    sound = (packed / "manifest.json").read_text()
    bad = {
        12: b"\x93NUMPY no",
        25: npy(np.zeros(2, np.float32)),
        31: npy(np.float32([1, np.inf, 3])),
    }
    for number, data in bad.items():
        shard = packed / f"{number // 10:06d}.tar"
        with tarfile.open(shard) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        write_shard(shard, members | {f"{number:08d}.vector.npy": data})
    with pytest.raises(DataError, match=r"member 00000012\.vector\.npy: no readable vector"):
        index_folder(packed)
    index_without_looking(packed)
    (packed / "manifest.json").write_text(sound)
    shard = packed / "000004.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(table(53)[47].tobytes())] ^= 1
    shard.write_bytes(content)
    return packed


def index_without_looking(folder: Path) -> None:
    """The indexes as they would be had the vectors been sound."""
    from genus.data.index import index_shard

    for path in folder.glob("*.tar"):
        with path.open("rb") as file:
            index = index_shard(file, path.name)
        path.with_suffix(".index.npz").write_bytes(index.to_bytes())


def test_bad_vectors_end_a_run_or_are_stood_in_for(damaged: Path) -> None:
    config = DataConfig(url=str(damaged), workers=0)
    with pytest.raises(DataError, match=r"data\.bad_samples allows 0"):
        seen(open_stream(config, batch=8, seed=0), 64)
    stream = open_stream(DataConfig(url=str(damaged), workers=0, bad_samples=4), batch=8, seed=0)
    ledger: list[Any] = []
    stream.ledger = ledger.append
    found = seen(stream, 128)
    assert sorted(found) == [i for i in range(53) if i not in (12, 25, 31, 47)]
    assert all(np.array_equal(v.numpy(), table(53)[i]) for i, v in found.items())
    whys = {entry["sample"]: str(entry["why"]) for entry in ledger}
    assert "no readable vector" in whys[12]
    assert "of 2 numbers, the data set's have 3" in whys[25]
    assert "not finite" in whys[31]
    assert "crc32" in whys[47]
    for number, why in whys.items():
        assert f"sample {number:08d}" in why


def test_verify_finds_bad_vectors(damaged: Path) -> None:
    content = {fault.sample: fault.what for fault in verify(str(damaged), 1, decode=True)}
    assert "no readable vector" in content["sample 00000012.vector.npy"]
    assert content["sample 00000025.vector.npy"] == "it has 2 numbers, the manifest says 3"
    assert "not finite" in content["sample 00000031.vector.npy"]
    assert "crc32" in content["sample 00000047.vector.npy"]


def test_indexing_refuses_vectors_of_several_lengths(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.vector.npy": npy([1.0]), "b.vector.npy": npy([1.0, 2])})
    with pytest.raises(DataError, match=r"member b\.vector\.npy: a vector of 2 numbers"):
        index_folder(tmp_path)
    write_shard(tmp_path / "0.tar", {"a.vector.npy": npy([1.0])})
    write_shard(tmp_path / "1.tar", {"b.vector.npy": npy([1.0, 2.0])})
    with pytest.raises(DataError, match=r"0\.tar have 1 numbers, those of 1\.tar 2"):
        index_folder(tmp_path)
    shutil.copy(tmp_path / "0.tar", tmp_path / "1.tar")
    assert index_folder(tmp_path).dims == 1


# ---- looking -------------------------------------------------------------------------------------


def test_report_and_no_sheet(packed: Path, tmp_path: Path) -> None:
    rows = [line.split() for line in str(inspect(str(packed))).splitlines()]
    means = table(53).astype(float).mean(0)
    assert [float(row[3]) for row in rows if row[:1] == ["number"]] == pytest.approx(
        means, rel=1e-4
    )
    with pytest.raises(DataError, match="no images"):
        contact_sheet(str(packed), tmp_path / "sheet.png")
    pack_vectors(table(5, 40), tmp_path / "wide")
    assert "and 8 more" in str(inspect(str(tmp_path / "wide")))
