"""Files by name, wherever they lie: in a local folder, a bucket or on a web server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from genus.data.bucket import Bucket
from genus.data.files import Folder, Span, UnreadableError
from genus.errors import DataError

__all__ = ["Bucket", "Folder", "Span", "Store", "UnreadableError", "open_store"]

BUCKETS = ("s3://", "gs://", "http://", "https://")


class Store(Protocol):
    """A place with files. Every failure is a DataError that names the file, the cause and a remedy.

    Names may hold "/" but lead nowhere else. Stores can be pickled for worker processes.
    """

    @property
    def url(self) -> str:
        """As the user gave it, without a slash at the end."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes [start, stop) of a file."""

    def read_many(self, spans: Sequence[Span]) -> list[bytes | DataError]:
        """What ``read`` gives or raises for each span, in their order; at once where it pays."""

    def read_all(self, name: str) -> bytes:
        """All bytes of a file."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def names(self) -> list[str]:
        """The files directly in the store, sorted."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file, which is seen whole or not at all."""


def open_store(url: str) -> Folder | Bucket:
    """s3://, gs://, http:// and https:// are buckets, all else is a local path.

    Asks nothing yet: what is missing shows at the first read. DataError for a url that can't be.
    """
    if url.startswith(BUCKETS):
        return Bucket(url)
    if "://" in url:
        known = ", ".join(BUCKETS)
        raise DataError(f"'{url}' is no place for data: expected a local path or one of {known}")
    return Folder(Path(url))
