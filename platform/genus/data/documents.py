"""From text files to documents: read a piece at a time, so that several processes can share them.

A document is the string of a line of a ``*.jsonl`` file, a part of another file between separators,
or without a separator the whole file. Line ends and spaces stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genus.errors import DataError

PIECE = 2**22
"""About how many bytes of a file make a piece."""


@dataclass(frozen=True)
class Piece:
    """Whole documents that lie side by side in a file."""

    path: Path
    start: int
    """First byte."""
    stop: int
    """The byte after the last one."""
    first: int
    """Number of its first document (or line) in the file, from 1 on; 0: it is the file."""
    is_last: bool
    """Whether the file ends with it."""


def read_texts(
    paths: Sequence[Path], separator: str = "", field: str = "text"
) -> Iterator[tuple[str, str]]:
    """(place, text) of each document, ``field`` of each line of a ``*.jsonl``.

    DataError names file and line of what can't be read.
    """
    for piece, data in read_pieces(paths, separator):
        yield from split_piece(piece, data, separator, field)


def read_pieces(paths: Sequence[Path], separator: str = "") -> Iterator[tuple[Piece, bytes]]:
    """The pieces of the files, each with its bytes, in order. DataError for unreadable files."""
    for path in paths:
        try:
            mark = b"\n" if path.suffix == ".jsonl" else separator.encode()
            if mark:
                yield from _cut(path, mark)
            else:
                data = path.read_bytes()
                yield Piece(path, 0, len(data), 0, True), data
        except OSError as error:
            raise _unreadable(path, error) from None


def read_piece(piece: Piece) -> bytes:
    """A piece's bytes. DataError where they can't be read any more."""
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.start)
            data = file.read(piece.stop - piece.start)
    except OSError as error:
        raise _unreadable(piece.path, error) from None
    if len(data) < piece.stop - piece.start:
        raise DataError(f"{piece.path} became shorter while it was read: begin again")
    return data


def split_piece(
    piece: Piece, data: bytes, separator: str = "", field: str = "text"
) -> Iterator[tuple[str, str]]:
    """(place, text) of the documents in a piece's bytes. DataError for what is no text."""
    if piece.path.suffix == ".jsonl":
        yield from _json_lines(piece, data, field)
    elif not separator:
        yield str(piece.path), _decode(data, str(piece.path))
    else:
        *parts, rest = data.split(separator.encode())
        if piece.is_last:
            parts.append(rest)
        for number, part in enumerate(parts, piece.first):
            place = f"{piece.path}, document {number}"
            yield place, _decode(part, place)


def _cut(path: Path, mark: bytes) -> Iterator[tuple[Piece, bytes]]:
    """Pieces that end behind a ``mark``, but for the file's last."""
    start, number, held = 0, 1, b""
    with path.open("rb") as file:
        while chunk := file.read(max(PIECE, len(held))):  # a long document: twice as far each time
            held += chunk
            *whole, rest = held.split(mark)
            if whole:
                stop = start + len(held) - len(rest)
                yield Piece(path, start, stop, number, False), held[: stop - start]
                start, number, held = stop, number + len(whole), rest
    yield Piece(path, start, start + len(held), number, True), held


def _json_lines(piece: Piece, data: bytes, field: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(data.split(b"\n"), piece.first):  # text has other line ends too
        place = f"{piece.path}, line {number}"
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


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: no UTF-8 text (byte {error.start} is {data[error.start]:#x}); convert it "
            "first, with iconv for example"
        ) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"can't read the text {path} ({error.strerror})")
