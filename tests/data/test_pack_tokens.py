"""Documents and text files, packed exactly into token shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genus.data import documents as documents_module
from genus.data.manifest import Manifest
from genus.data.pack_text import pack_text
from genus.data.pack_tokens import pack_tokens
from genus.data.store import Folder
from genus.data.token_shard import BLOCK, TokenIndex
from genus.errors import DataError
from token_data import load, made, stored, stored_documents, windows

SHAKESPEARE = Path(__file__).parent / "shakespeare.txt"


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    shard_tokens=st.integers(2, 40),
    vocabulary=st.sampled_from([2, 256, 65536, 65537, 2**32]),
    ended=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_token_and_boundary_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    shard_tokens: int,
    vocabulary: int,
    ended: bool,
    seed: int,
) -> None:
    out = tmp_path_factory.mktemp("round") / "out"
    documents = made(lengths, vocabulary, seed)
    end = vocabulary - 1 if ended else -1
    # as arrays, lists and a generator: all of them are documents
    mixed = (d if i % 2 else d.tolist() for i, d in enumerate(documents))
    manifest = pack_tokens(mixed, out, vocabulary=vocabulary, end=end, shard_tokens=shard_tokens)
    tail = [end] if ended else []
    assert stored_documents(out) == [d.tolist() + tail for d in documents]
    assert manifest == Manifest.load(Folder(out))
    assert manifest.tokens == sum(lengths) + len(lengths) * ended
    sizes = [shard.nsamples for shard in manifest.shards]
    assert sizes[:-1] == [shard_tokens] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= shard_tokens
    assert manifest.dtype == ("uint16" if vocabulary <= 65536 else "uint32")
    assert all(values.dtype == manifest.dtype for values, _ in stored(out))


def test_manifest_and_index_describe_the_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = pack_tokens(made([9000, 30000], 300), out, vocabulary=300, end=299, name="mine")
    (shard,) = manifest.shards
    data = (out / shard.url).read_bytes()
    assert (shard.url, shard.index) == ("000000.npy", "000000.index.npz")
    assert shard.filesize == len(data)
    assert shard.checksum == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (manifest.name, manifest.vocabulary, manifest.end) == ("mine", 300, 299)
    index = TokenIndex.of_bytes((out / shard.index).read_bytes(), 39002, 2)
    assert data[index.offset :] == np.load(out / shard.url).tobytes()
    assert index.documents.tolist() == [0, 9001]
    assert len(index.crc) == -(-39002 * 2 // BLOCK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_packing_is_deterministic(tmp_path: Path) -> None:
    for name in "ab":
        pack_tokens(made([50, 60], 99), tmp_path / name, vocabulary=99, shard_tokens=64, name="x")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[1, 2], [3, 10]], "document 1, token 1 is 10, outside the vocabulary 0..9"),
        ([[1, -1]], "document 0, token 1 is -1, outside"),
        ([[1, 9, 2]], "document 0, token 1 is the end token 9"),
        ([[1.0, 2.0]], "expected integers"),
        ([[True]], "expected integers"),
        ([[2**70]], "expected integers"),
        ([[[1], [2]]], "expected integers"),
        ([], "no documents"),
    ],
)
def test_documents_that_cannot_be_stored(tmp_path: Path, documents: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack_tokens(documents, tmp_path / "out", vocabulary=10, end=9, shard_tokens=2)
    assert list(tmp_path.iterdir()) == []


def test_empty_documents_need_an_end_token(tmp_path: Path) -> None:
    documents: list[list[int]] = [[], [1], []]
    pack_tokens(documents, tmp_path / "a", vocabulary=3, end=2, shard_tokens=2)
    assert stored_documents(tmp_path / "a") == [[2], [1, 2], [2]]
    with pytest.raises(DataError, match="document 0 has no tokens"):
        pack_tokens(documents, tmp_path / "b", vocabulary=3)


def test_packing_never_overwrites_and_cleans_up(tmp_path: Path) -> None:
    def broken() -> Any:
        yield [1] * 100
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_tokens(broken(), tmp_path / "new" / "out", vocabulary=2, shard_tokens=10)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="exists already"):
        pack_tokens([[1]], tmp_path / "there", vocabulary=2)
    requests: list[dict[str, Any]] = [
        {"vocabulary": 0},
        {"vocabulary": 2**32 + 1},
        {"vocabulary": 5, "end": 5},
        {"vocabulary": 5, "shard_tokens": 1},
    ]
    for wrong in requests:
        with pytest.raises(DataError, match="can't pack with vocabulary"):
            pack_tokens([[1]], tmp_path / "bad", **wrong)


# ---- text ----------------------------------------------------------------------------------------


def test_shakespeare_as_bytes(tmp_path: Path) -> None:
    manifest = pack_text([SHAKESPEARE], tmp_path / "out", shard_tokens=40_000)
    whole = SHAKESPEARE.read_bytes()
    assert (manifest.vocabulary, manifest.end, manifest.tokenizer) == (257, 256, "bytes")
    assert stored_documents(tmp_path / "out") == [[*whole, 256]]
    data = windows(tmp_path / "out", 128)
    found = load(data, [0, 1])["tokens"]
    assert bytes(found[0].tolist()) == whole[:129]
    assert bytes(found[1].tolist()) == whole[128:257]


def test_documents_of_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "PIECE", 5)  # separators and characters lie across chunks
    (tmp_path / "a.txt").write_bytes("ü\r\n\u2028x<end>\n<end><end>last".encode())
    (tmp_path / "b.txt").write_bytes(b"")
    lines = [{"text": "one\nline"}, {"text": "", "x": 1}, {"text": "zwölf\u2028"}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl")]

    def documents(out: str, **options: Any) -> list[str]:
        pack_text(files, tmp_path / out, **options)
        return [bytes(d[:-1]).decode() for d in stored_documents(tmp_path / out)]

    ends = ["one\nline", "zwölf\u2028"]
    assert documents("parts", separator="<end>") == ["ü\r\n\u2028x", "\n", "last", *ends]
    assert documents("whole") == ["ü\r\n\u2028x<end>\n<end><end>last", *ends]


def test_empty_texts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one||two|")
    pack_text([tmp_path / "a.txt"], tmp_path / "out", separator="|")
    said = capsys.readouterr().out
    assert "left out 2 documents without text (the first:" in said
    assert "packed 8 tokens of 2 documents in 1 shards" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xff", r"a\.txt: no UTF-8 text \(byte 3 is 0xff\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl, line 2: .*'text'"),
        ("a.jsonl", b'{"other": "x"}\n', r"a\.jsonl, line 1: .*'text'"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl, line 1: "),
        ("a.jsonl", b"{text}\n", r"a\.jsonl, line 1: "),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1: "),
        ("a.txt", None, r"can't read the text .*a\.txt"),
        ("a.txt", b"", "no documents"),
    ],
)
def test_bad_text_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        pack_text([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hugging_face_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.ByteLevelBPETokenizer()
    model.train([str(SHAKESPEARE)], vocab_size=400, special_tokens=["<|end|>"], show_progress=False)
    # what a file may ask for, and what would cut documents short or put tokens before them
    model.enable_truncation(5)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", model.token_to_id("<|end|>"))]
    )
    file = tmp_path / "mine.json"
    model.save(str(file))
    parts = SHAKESPEARE.read_text().split("\n\n")[:200]
    parts[7] += " <|end|> "
    (tmp_path / "play.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in parts))
    manifest = pack_text(
        [tmp_path / "play.jsonl"], tmp_path / "out", tokenizer=str(file), end="<|end|>"
    )
    end = model.token_to_id("<|end|>")
    found = stored_documents(tmp_path / "out")
    assert [d.pop() for d in found] == [end] * 200
    assert all(end not in d for d in found)
    assert [model.decode(d, skip_special_tokens=False) for d in found] == parts
    assert max(map(len, found)) > 5
    copy = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert copy == file.read_bytes()
    assert manifest.tokenizer == "sha256:" + hashlib.sha256(copy).hexdigest()
    assert (manifest.vocabulary, manifest.end) == (model.get_vocab_size(), end)
    for wrong, message in (
        ({"tokenizer": str(file), "end": "</s>"}, "no token '</s>'"),
        ({"tokenizer": str(SHAKESPEARE)}, r"no Hugging Face tokenizer\.json"),
        ({"tokenizer": str(tmp_path / "missing.json")}, "can't read the tokenizer"),
        ({"end": "</s>"}, "has its own end token"),
    ):
        with pytest.raises(DataError, match=message):
            pack_text([SHAKESPEARE], tmp_path / "bad", **wrong)  # type: ignore[arg-type]
