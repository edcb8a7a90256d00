"""Packing text by several processes, going on after a kill, and held-out parts."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from genus.cli import main
from genus.data import documents
from genus.data import pack_text as module
from genus.data.characters import characters_model
from genus.data.datasets import resolve, tokenizer_of
from genus.data.manifest import Manifest
from genus.data.pack_text import pack_text
from genus.data.store import Folder
from genus.data.stream import DataConfig, iterate_once, open_stream
from genus.data.text import END
from genus.data.verify import verify
from genus.errors import DataError
from token_data import stored, stored_documents

SHAKESPEARE = Path(__file__).parent / "shakespeare.txt"


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files of 300 documents in about 20 parts."""
    monkeypatch.setattr(documents, "PIECE", 5000)
    parts = [part for part in SHAKESPEARE.read_text().split("\n\n") if part][:300]
    (tmp_path / "a.txt").write_text("\n\n".join(parts[:140]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in parts[140:]))
    (tmp_path / "c.txt").write_text("")
    return [tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt")]


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_result_is_the_same_with_any_number_of_processes(
    texts: list[Path], tmp_path: Path
) -> None:
    options = {"tokenizer": "characters", "separator": "\n\n", "shard_tokens": 4000, "name": "x"}
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        pack_text(texts, out, workers=workers, **options)  # type: ignore[arg-type]
    assert content(tmp_path / "out-1") == content(tmp_path / "out-2")
    assert len(content(tmp_path / "out-1")) > 10
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    decode = tokenizer_of(str(out)).decode
    parts = [part for part in SHAKESPEARE.read_text().split("\n\n") if part][:300]
    assert [decode(document) for document in stored_documents(out)] == parts


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / ".out.packing"
    folder.mkdir()
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is packing"):
            pack_text([SHAKESPEARE], tmp_path / "out")
        assert (folder / "lock").exists()


def test_what_is_done_is_not_done_again(
    texts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_text(texts, tmp_path / "whole", separator="\n\n", name="x")
    sound = texts[1].read_text()
    texts[1].write_text(sound + "no json\n")
    with pytest.raises(DataError, match=r"b\.jsonl, line 161"):
        pack_text(texts, tmp_path / "out", separator="\n\n", name="x")
    done = sorted((tmp_path / ".out.packing").glob("*.npz"))
    assert len(done) > 3
    times = [path.stat().st_mtime_ns for path in done]
    texts[1].write_text(sound)  # mended
    capsys.readouterr()
    seen: list[int] = []
    encode = module.encode_job

    def watched(work: module.Work, number: int, job: module.Job) -> None:
        seen.append(number)
        assert [path.stat().st_mtime_ns for path in done] == times
        encode(work, number, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "encode_job", watched)
        pack_text(texts, tmp_path / "out", separator="\n\n", name="x")
    assert f"going on: {len(done)} of" in capsys.readouterr().out
    assert min(seen) == len(done)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / ".out.packing").exists()


@pytest.mark.parametrize("change", ["text", "model", "end", "separator"])
def test_other_text_or_options_are_not_taken_for_done(
    texts: list[Path], tmp_path: Path, change: str
) -> None:
    known = {*SHAKESPEARE.read_text(), *SHAKESPEARE.read_text().upper()}
    for name, characters in (("a.json", known), ("b.json", {*known, "\x01"})):
        (tmp_path / name).write_bytes(characters_model(characters, END))
    broken = tmp_path / "z.txt"
    broken.write_bytes(b"\xff")
    options = {"separator": "\n\n", "name": "x", "tokenizer": str(tmp_path / "a.json")}
    with pytest.raises(DataError, match="no UTF-8"):
        pack_text([*texts, broken], tmp_path / "out", **options)  # type: ignore[arg-type]
    assert [*(tmp_path / ".out.packing").glob("0*.npz")]
    match change:
        case "text":
            texts[0].write_text(texts[0].read_text().upper())
        case "model":
            options["tokenizer"] = str(tmp_path / "b.json")
        case "end":
            options["end"] = END
        case _:
            options["separator"] = "\n"
    pack_text(texts, tmp_path / "out", **options)  # type: ignore[arg-type]
    pack_text(texts, tmp_path / "new", **options)  # type: ignore[arg-type]
    assert content(tmp_path / "out") == content(tmp_path / "new")


def test_killed_and_begun_again_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL to the process: its workers end too, and the result is that of a single run."""
    monkeypatch.setattr(documents, "PIECE", 20_000)
    text, out = tmp_path / "long.txt", tmp_path / "out"
    text.write_bytes(SHAKESPEARE.read_bytes() * 20)  # 2 MB, 100 parts
    folder = tmp_path / ".out.packing"
    program = (
        "from genus.data import documents, pack_text\n"
        "documents.PIECE = 20_000\n"
        f"pack_text.pack_text([{str(text)!r}], {str(out)!r}, separator='\\n\\n', workers=2)\n"
    )
    mine = {**os.environ, "GENUS_TEST": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=mine)
    deadline = time.monotonic() + 60
    while len([*folder.glob("0*.npz")]) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(children(tmp_path)) == 2
    process.kill()
    process.wait()
    assert not out.exists()
    while children(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not children(tmp_path)
    assert 3 <= len([*folder.glob("0*.npz")]) < 100
    capsys.readouterr()
    pack_text([text], out, separator="\n\n")
    assert "going on: " in capsys.readouterr().out
    pack_text([text], tmp_path / "whole", separator="\n\n", name="out")
    assert content(out) == content(tmp_path / "whole")


def children(folder: Path) -> list[int]:
    """Worker processes of the program above."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            own = f"GENUS_TEST={folder}".encode() in (entry / "environ").read_bytes()
            if own and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# ---- held-out parts ------------------------------------------------------------------------------


def test_the_last_share_is_held_out(tmp_path: Path) -> None:
    """Of a single document too: the cut is exact in tokens."""
    pack_text(
        [SHAKESPEARE], tmp_path / "out", tokenizer="characters", validation=0.1, shard_tokens=30_000
    )
    text = SHAKESPEARE.read_text()
    cut = len(text) - round(0.1 * len(text))
    decode = tokenizer_of(str(tmp_path / "out")).decode
    parts = [
        "".join(decode(values) for values, _ in stored(tmp_path / "out" / split))
        for split in ("train", "test")
    ]
    assert parts == [text[:cut], text[cut:]]
    for split in ("train", "test"):
        assert verify(str(tmp_path / "out" / split)) == []
    train, test = (Manifest.load(Folder(tmp_path / "out" / s)) for s in ("train", "test"))
    assert (train.name, train.tokenizer) == (test.name, test.tokenizer)
    assert resolve(str(tmp_path / "out")) == Folder(tmp_path / "out" / "train")
    stream = open_stream(DataConfig(url=str(tmp_path / "out"), size=16), batch=4, seed=0)
    assert stream.info.vocabulary == len(set(text))
    (batch,) = iterate_once(DataConfig(url=str(tmp_path / "out" / "test"), size=16), 1, limit=1)
    assert decode(batch["tokens"][0].numpy()) == text[cut : cut + 17]


def test_documents_go_on_in_the_held_out_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aaa|bbbb|cc|dd")
    pack_text([tmp_path / "a.txt"], tmp_path / "out", separator="|", validation=0.5)
    (train, starts), (test, rest) = (stored(tmp_path / "out" / s)[0] for s in ("train", "test"))
    assert bytes(np.where(train == 256, 46, train).tolist()) == b"aaa.bbb"
    assert bytes(np.where(test == 256, 46, test).tolist()) == b"b.cc.dd."
    assert (starts.tolist(), rest.tolist()) == ([0, 4], [2, 5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "a share from 0 to below 1"),
        ({"validation": -0.1}, "a share from 0 to below 1"),
        ({"workers": 0}, "1 or more processes"),
        ({"validation": 0.01}, "too few for a validation share"),
    ],
)
def test_what_can_not_be_is_refused(
    tmp_path: Path, options: dict[str, float], message: str
) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(DataError, match=message):
        pack_text([tmp_path / "a.txt"], tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "tokens", str(SHAKESPEARE), "--tokenizer", "characters"]
    words += ["--validation", "0.1", "--workers", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"tokens of 1 documents in 1 shards: {tmp_path}/out/train" in said
    assert f"tokens of 0 documents in 1 shards: {tmp_path}/out/test" in said
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
