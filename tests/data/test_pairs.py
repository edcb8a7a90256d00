"""Sequences of variable length: packed exactly, served padded, refused where they are none."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from make import make_pairs, pairs
from numpy.typing import NDArray

from genus.data.characters import characters_model
from genus.data.datasets import tokenizer_of
from genus.data.index import index_folder
from genus.data.manifest import DataInfo, Manifest
from genus.data.pack_pairs import Pair, pack_pairs
from genus.data.sequences import frames_into, npy, read_frames, read_sequence, sequence_into
from genus.data.store import Folder
from genus.data.stream import DataConfig, iterate_once, open_stream, read_info
from genus.data.text import END, tokenizer_of_model
from genus.data.verify import verify
from genus.errors import DataError

END_TOKEN = 11


def config(url: Path, **options: object) -> DataConfig:
    return DataConfig(url=str(url), workers=0, **options)  # type: ignore[arg-type]


def padded(rows: list[NDArray[np.int64]], width: int) -> list[list[int]]:
    return [[*row.tolist(), *[-1] * (width - len(row))] for row in rows]


# ---- one sequence --------------------------------------------------------------------------------


def test_rows_are_padded() -> None:
    out = np.full(5, 77)
    assert sequence_into(npy(np.array([3, 0, 4], np.uint16)), out) == 3
    assert out.tolist() == [3, 0, 4, -1, -1]
    frames = np.full((3, 2), 7, np.float32)
    assert frames_into(npy(np.array([[1, 2], [3, 4.5]], np.float16)), frames) == 2
    assert frames.tolist() == [[1, 2], [3, 4.5], [0, 0]]


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros(0, np.uint16), r"expected integers \(n,\)"),
        (np.zeros((2, 2), np.uint16), r"expected integers \(n,\)"),
        (np.zeros(2, np.float32), r"expected integers \(n,\)"),
        (np.array([1, -1]), "outside 0"),
        (np.array([2**32]), "outside 0"),
        (np.zeros(4, np.uint16), "a sequence of 4, the data set's longest is 3"),
    ],
)
def test_what_is_no_sequence_is_refused(array: NDArray[np.generic], why: str) -> None:
    with pytest.raises(DataError, match=why):
        sequence_into(npy(array), np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros(3, np.float32), r"expected floats \(n, F\)"),
        (np.zeros((3, 2), np.int32), r"expected floats \(n, F\)"),
        (np.zeros((0, 2), np.float32), r"expected floats \(n, F\)"),
        (np.full((1, 2), np.inf, np.float32), "not finite"),
        (np.full((1, 2), 1e300), "not finite"),
        (np.zeros((4, 2), np.float32), "a sequence of 4, the data set's longest is 3"),
        (np.zeros((3, 1), np.float32), "frames of 1 numbers, the data set's have 2"),
    ],
)
def test_what_are_no_frames_is_refused(array: NDArray[np.generic], why: str) -> None:
    with pytest.raises(DataError, match=why):
        frames_into(npy(array), np.zeros((3, 2), np.float32))


def test_damaged_files_are_refused() -> None:
    good = npy(np.array([1, 2], np.uint16))
    for data in (b"", good[:-1]):
        with pytest.raises(DataError, match="no readable array"):
            read_sequence(data)
    archive = io.BytesIO()
    np.savez(archive, x=np.zeros((2, 2)))
    with pytest.raises(DataError, match="no array but an archive"):
        read_frames(archive.getvalue())


# ---- data sets -----------------------------------------------------------------------------------


def test_tokens_to_tokens(tmp_path: Path) -> None:
    made = make_pairs(tmp_path / "out", 25)
    (batch,) = iterate_once(config(tmp_path / "out"), 100)
    width = max(len(pair.target) for pair in made)
    assert width > 5
    sources = [np.asarray(pair.source) for pair in made]
    targets = [np.append(pair.target, END_TOKEN) for pair in made]
    assert batch["source"].tolist() == padded(sources, width)
    assert batch["target"].tolist() == padded(targets, width + 1)
    assert batch["source"].dtype == batch["target"].dtype == torch.int64
    info = read_info(config(tmp_path / "out"))
    assert info.fields == ("source", "target")
    assert (info.vocabulary, info.source_vocabulary, info.end) == (12, 12, 11)
    assert (info.source_length, info.target_length) == (width, width + 1)
    assert (info.length, info.frame_features, info.samples) == (0, 0, 25)
    assert DataInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    assert verify(str(tmp_path / "out"), workers=1, decode=True) == []
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(urls) == 3
    theirs = [*webdataset.WebDataset(urls, shardshuffle=False)]
    assert [np.load(io.BytesIO(s["source.npy"])).tolist() for s in theirs] == [
        source.tolist() for source in sources
    ]


def test_frames_to_tokens(tmp_path: Path) -> None:
    made = make_pairs(tmp_path / "out", 25, "frames")
    (batch,) = iterate_once(config(tmp_path / "out"), 100)
    info = read_info(config(tmp_path / "out"))
    lengths = [len(pair.target) for pair in made]
    assert info.fields == ("frames", "target", "frames_length") == tuple(batch.fields)
    assert (info.frame_features, info.source_length) == (3, max(lengths))
    assert (info.source_vocabulary, info.vocabulary) == (0, 12)
    assert batch["frames_length"].tolist() == lengths
    assert batch["frames"].shape == (25, max(lengths), 3)
    assert batch["frames"].dtype == torch.float32
    for row, pair in zip(batch["frames"].numpy(), made, strict=True):
        assert pair.frames is not None
        assert np.array_equal(row[: len(pair.frames)], pair.frames.astype(np.float32))
        assert not row[len(pair.frames) :].any()
    assert verify(str(tmp_path / "out"), workers=1, decode=True) == []


def test_images_to_tokens(tmp_path: Path) -> None:
    made = make_pairs(tmp_path / "out", 25, "image")
    (batch,) = iterate_once(config(tmp_path / "out", size=2, fit="resize"), 100)
    info = read_info(config(tmp_path / "out"))
    assert info.fields == ("image", "target")
    assert (info.channels, info.resolution, info.source_length) == (1, 4, 0)
    assert batch["image"].shape == (25, 1, 2, 2)
    assert batch["target"].shape == (25, info.target_length)
    assert batch["target"][3, : len(made[3].target)].tolist() == np.asarray(made[3].target).tolist()


@pytest.mark.parametrize("kind", ["source", "frames"])
def test_shapes_depend_on_no_rank_and_workers_change_nothing(tmp_path: Path, kind: str) -> None:
    make_pairs(tmp_path / "out", 40, kind)
    plain = next(iter(open_stream(config(tmp_path / "out"), batch=8, seed=3)))
    ranks = [
        next(iter(open_stream(config(tmp_path / "out"), batch=8, seed=3, rank=rank, world=4)))
        for rank in range(4)
    ]
    forked = replace(config(tmp_path / "out"), workers=1)
    other = next(iter(open_stream(forked, batch=8, seed=3)))
    for name, value in plain.fields.items():
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), value)
        assert torch.equal(other[name], value)


def test_splits_are_padded_alike(tmp_path: Path) -> None:
    made = pairs(30)
    for name, part in (("train", made[:20]), ("test", made[20:22])):
        pack_pairs(
            part, tmp_path / name, vocabulary=12, end=11, lengths={"source": 15, "target": 17}
        )
    for name in ("train", "test"):
        info = read_info(config(tmp_path / name))
        assert (info.source_length, info.target_length) == (15, 17)
        index_folder(tmp_path / name)  # what the tars don't say stays
        assert read_info(config(tmp_path / name)) == info


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = tokenizer_of_model(characters_model("abc ", END), END)
    (tokens,) = tokenizer.encode(["cab a"])
    pack_pairs(
        [Pair(tokens, source=[1, 2])], tmp_path / "out", vocabulary=5, end=4, tokenizer=tokenizer
    )
    (batch,) = iterate_once(config(tmp_path / "out"), 1)
    assert tokenizer_of(str(tmp_path / "out")).decode(batch["target"][0].numpy()) == "cab a"
    index_folder(tmp_path / "out")
    assert tokenizer_of(str(tmp_path / "out")).end == 4


def test_shards_made_elsewhere(tmp_path: Path) -> None:
    """Without a manifest of ours there are as many tokens as occur."""
    members = {
        "a.source.npy": npy(np.array([5, 2], np.int64)),
        "a.target.npy": npy(np.array([9], np.uint8)),
        "b.source.npy": npy(np.array([1], np.int64)),
        "b.target.npy": npy(np.array([3, 3, 3], np.uint8)),
    }
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index_folder(tmp_path)
    info = read_info(config(tmp_path))
    assert (info.source_vocabulary, info.vocabulary, info.end) == (6, 10, -1)
    (batch,) = iterate_once(config(tmp_path), 2)
    assert batch["source"].tolist() == [[5, 2], [1, -1]]
    assert batch["target"].tolist() == [[9, -1, -1], [3, 3, 3]]


def test_different_frames_are_refused(tmp_path: Path) -> None:
    two = [Pair([1], frames=np.zeros((2, n), np.float32)) for n in (3, 4)]
    for size in (1, 2):
        with pytest.raises(DataError, match="frames of 3 and 4 numbers"):
            pack_pairs(two, tmp_path / "out", vocabulary=3, end=2, shard_size=size)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        (Pair([1, 2]), {}, "target 0, token 1 is the end token 2"),
        (Pair([3]), {}, "target 0, token 0 is 3, outside the vocabulary"),
        (Pair([1], source=[7]), {}, "source 0, token 0 is 7, outside"),
        (Pair([1], source=[]), {}, "source 0 has no tokens"),
        (Pair([1], image=b"x", extension="tiff"), {}, r"image 0 is a \.tiff"),
        (Pair([1]), {"end": 3}, "end=3 is no token"),
        (Pair([1]), {"shard_size": 0}, "must be 1 or more"),
    ],
)
def test_what_can_not_be_packed(
    tmp_path: Path, pair: Pair, options: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pack_pairs([pair], tmp_path / "out", **{"vocabulary": 3, "end": 2} | options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_bad_sequences_are_stood_in_for(tmp_path: Path) -> None:
    made = make_pairs(tmp_path / "out", 20)
    tar = tmp_path / "out" / "000001.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"crc32"):
        [*iterate_once(config(tmp_path / "out"), 20)]
    stream = open_stream(config(tmp_path / "out", bad_samples=1, lanes=4), batch=20, seed=0)
    batch = next(iter(stream))
    assert len(set(batch.ids.tolist())) == 19
    for number, row in zip(batch.ids.tolist(), batch["source"].tolist(), strict=True):
        source = np.asarray(made[number].source)
        assert row[: len(source)] == source.tolist()


def test_older_manifests(tmp_path: Path) -> None:
    make_pairs(tmp_path / "out", 5)
    file = tmp_path / "out" / "manifest.json"
    body = json.loads(file.read_text())
    before = Manifest.load(Folder(tmp_path / "out")).fingerprint()
    for name in ("lengths", "source_vocabulary", "frame_features", "vocabulary", "end"):
        del body[name]
    file.write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"source sequences are: make it again with 'genus data i"):
        read_info(config(tmp_path / "out"))
    index_folder(tmp_path / "out")
    assert Manifest.load(Folder(tmp_path / "out")).fingerprint() == before
    assert read_info(config(tmp_path / "out")).source_length > 0
    fashion = (
        Path(__file__).parent / "fashion-1000"
    )  # as it was written before there were sequences
    shutil.copytree(fashion, tmp_path / "fashion")
    Manifest.load(Folder(tmp_path / "fashion")).save(Folder(tmp_path / "fashion"))
    ours, theirs = (
        json.loads((f / "manifest.json").read_text()) for f in (fashion, tmp_path / "fashion")
    )
    assert ours == theirs


def test_sets_of_other_tokens_are_not_mixed(tmp_path: Path) -> None:
    make_pairs(tmp_path / "a", 20)
    make_pairs(tmp_path / "b", 20, vocabulary=14)
    with pytest.raises(DataError, match="can't be mixed: the vocabulary"):
        read_info(config(tmp_path / "a", also=(str(tmp_path / "b"),)))
    with pytest.raises(DataError, match="holds sequences, which are served as they are stored"):
        read_info(config(tmp_path / "a", size=8))
