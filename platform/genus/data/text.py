"""From text files to documents, and from documents to tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.errors import DataError

BYTES = "bytes"
"""The tokenizer that needs no file: a token is a byte of the UTF-8 text."""
Tokens = NDArray[Any] | Sequence[int]
_BATCH = 2**20
"""Characters that are tokenized at once."""
_CHUNK = 2**20
"""Bytes that are read at once where files are split."""


@dataclass(frozen=True)
class Tokenizer:
    """From documents to token numbers."""

    vocabulary: int
    """Tokens are 0..vocabulary-1."""
    end: int
    """The token that ends a document; -1: none."""
    encode: Callable[[Iterable[str]], Iterator[Tokens]]
    """Documents to their tokens (n,), without the end token, in the same order."""


def open_tokenizer(name: str, end: str = "") -> Tokenizer:
    """``name``: "bytes" (256 bytes and the end token 256), or the path of a Hugging Face
    tokenizer.json, whose token ``end`` ends documents ("": none). DataError where it can't be."""
    if name == BYTES:
        if end:
            raise DataError(f"the tokenizer 'bytes' has its own end token: leave out end={end!r}")
        return Tokenizer(257, 256, _encode_bytes)
    try:
        import tokenizers
    except ImportError:
        raise DataError(f"to use {name}, run 'pip install tokenizers'") from None
    try:
        model = tokenizers.Tokenizer.from_str(read_model(Path(name)).decode())
    except DataError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{name} is no Hugging Face tokenizer.json ({error})") from None
    # what a file may switch on, and what would lose text or put special tokens into documents
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True  # "<|endoftext|>" in a text stays text
    known = model.get_vocab(with_added_tokens=True)
    if end and end not in known:
        raise DataError(f"the tokenizer {name} has no token {end!r} to end documents with")

    def encode(texts: Iterable[str]) -> Iterator[Tokens]:
        for batch in _batches(texts):
            for encoding in model.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids

    return Tokenizer(max(known.values()) + 1, known[end] if end else -1, encode)


def read_model(path: Path) -> bytes:
    """The content of a tokenizer.json. DataError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"can't read the tokenizer {path} ({error.strerror}): give 'bytes' or the path of a "
            "tokenizer.json"
        ) from None


def read_texts(
    paths: Sequence[Path], separator: str = "", field: str = "text"
) -> Iterator[tuple[str, str]]:
    """(place, text) of each document: of ``*.jsonl`` the string ``field`` of each line, of other
    files the parts between ``separator``, or without one the whole file.

    Line ends and spaces stay as they are. DataError names file and line of what can't be read.
    """
    for path in paths:
        try:
            if path.suffix == ".jsonl":
                yield from _json_lines(path, field)
            elif separator:
                yield from _parts(path, separator.encode())
            else:
                yield str(path), _decode(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(f"can't read the text {path} ({error.strerror})") from None


def _json_lines(path: Path, field: str) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:  # bytes: a text file would end lines elsewhere too
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                text = json.loads(_decode(line, place))[field]
                if not isinstance(text, str):
                    raise TypeError(f"its {field} is no string")
                text.encode()  # JSON can write half of a character (a lone surrogate)
            except DataError:
                raise
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(
                    f"{place}: expected a JSON object with a string {field!r} "
                    f"({type(error).__name__}: {error})"
                ) from None
            yield place, text


def _parts(path: Path, separator: bytes) -> Iterator[tuple[str, str]]:
    """The file is read in pieces: one that holds many documents may be larger than the memory."""
    number, rest = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(separator)
            for part in whole:
                number += 1
                place = f"{path}, document {number}"
                yield place, _decode(part, place)
    place = f"{path}, document {number + 1}"
    yield place, _decode(rest, place)


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: no UTF-8 text (byte {error.start} is {data[error.start]:#x}); convert it "
            "first, with iconv for example"
        ) from None


def _encode_bytes(texts: Iterable[str]) -> Iterator[Tokens]:
    for text in texts:
        yield np.frombuffer(text.encode(), np.uint8)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
