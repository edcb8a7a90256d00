"""A part of the work of packing text: the documents of a job to a file of their tokens.

Worker processes import this module, so it needs no torch.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from genus.atomic import replacing
from genus.data import documents
from genus.data.characters import UnknownCharacterError
from genus.data.checked_tokens import checked, dtype_of
from genus.data.documents import Piece, read_piece, read_pieces, split_piece
from genus.data.text import BYTES, Tokenizer, open_tokenizer, tokenizer_of_model
from genus.errors import DataError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """Documents that are tokenized together."""

    pieces: tuple[Piece, ...]
    digest: str
    """Of their bytes."""


@dataclass(frozen=True)
class Work:
    """What is done with each job."""

    model: bytes
    """The tokenizer.json; empty: bytes."""
    end: int
    separator: str
    field: str
    folder: Path
    """Where results go."""

    def path(self, number: int, job: Job) -> Path:
        """Of a job's result."""
        options = (self.end, self.separator, self.field, job.digest)
        identity = hashlib.blake2b(self.model + repr(options).encode(), digest_size=16).hexdigest()
        return self.folder / f"{number:06d}-{identity}.npz"


def jobs_of(paths: Sequence[Path], separator: str) -> Iterator[Job]:
    pieces: list[Piece] = []
    digest, size = hashlib.blake2b(digest_size=16), 0
    for piece, data in read_pieces(paths, separator):
        pieces.append(piece)
        digest.update(f"{piece.path.suffix}:{len(data)}:{piece.is_last}:".encode())
        digest.update(data)
        size += len(data)
        if size >= documents.PIECE:
            yield Job(tuple(pieces), digest.hexdigest())
            pieces, digest, size = [], hashlib.blake2b(digest_size=16), 0
    if pieces:
        yield Job(tuple(pieces), digest.hexdigest())


def _texts(job: Job, separator: str, field: str) -> Iterator[tuple[str, str]]:
    for piece in job.pieces:
        yield from split_piece(piece, read_piece(piece), separator, field)


def characters_of(job: Job, separator: str, field: str) -> set[str]:
    return set().union(*(text for _, text in _texts(job, separator, field)))


def encode_job(work: Work, number: int, job: Job) -> None:
    """Write a job's tokens (n,), the starts (D,) of its documents, and which texts are empty."""
    coder = _opened(work)
    dtype = dtype_of(coder.vocabulary)
    tail = np.array([coder.end] if coder.end >= 0 else [], dtype)
    places: list[str] = []
    empty: list[str] = []

    def filled() -> Iterator[str]:
        for place, text in _texts(job, work.separator, work.field):
            (places if text else empty).append(place)
            if text:
                yield text

    parts: list[NDArray[Any]] = [np.empty(0, dtype)]
    starts, size = [], 0
    try:
        for row, tokens in enumerate(coder.encode(filled())):
            checked_tokens = checked(tokens, places[row], coder.vocabulary, coder.end)
            starts.append(size)
            parts += [checked_tokens.astype(dtype), tail]
            size += len(checked_tokens) + len(tail)
    except UnknownCharacterError as error:
        raise DataError(f"{places[-1]}: {error}") from None
    with replacing(work.path(number, job)) as path, path.open("wb") as file:
        np.savez(
            file,
            tokens=np.concatenate(parts),
            starts=np.array(starts, np.int64),
            empty=np.array(empty, np.str_),
        )


@lru_cache(maxsize=1)
def _opened(work: Work) -> Tokenizer:
    return tokenizer_of_model(work.model, work.end) if work.model else open_tokenizer(BYTES)


class Pool:
    """Runs a function on many arguments, in other processes or here."""

    def __init__(self, workers: int) -> None:
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:  # not forked: the tokenizers library has threads
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, context, _start, ())

    def __call__(
        self, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]:
        """The results in order. After an error nothing more is begun."""
        if self._executor is None:
            for argument in arguments:
                yield function(*argument)
            return
        waiting: list[Future[Result]] = [self._executor.submit(function, *a) for a in arguments]
        for future in waiting:
            yield future.result()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """A worker uses one core, and ends with the process that began it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
