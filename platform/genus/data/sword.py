"""Reading a text module of the SWORD project: a Bible in compressed books ("zText").

    ot.bzs     12 bytes a block (a book): offset, length, length unpacked, in ot.bzz
    ot.bzz     the blocks, zlib
    ot.bzv     10 bytes a verse: block, offset in the unpacked block, length

The same with nt. Modules of one versification have their verses in the same slots, between slots
that begin books and chapters. The text is OSIS, a kind of XML.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from genus.errors import DataError

Slot = tuple[str, int, int]
"""(testament: ot or nt, book from 1 on, number in the testament)."""
# what is said about the text; headings come with the verse that they stand before
_ASIDE = re.compile(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>|¶")


def read_verses(folder: Path) -> dict[Slot, str]:
    """The plain text of every verse that has any, by its slot. DataError."""
    found: dict[Slot, str] = {}
    for testament in ("ot", "nt"):
        try:
            for number, (book, text) in enumerate(_slots(folder, testament)):
                if plain := plain_text(text):
                    found[testament, book, number] = plain
        except (OSError, struct.error, zlib.error, IndexError, UnicodeDecodeError) as error:
            raise DataError(f"can't read the module {folder} ({error})") from None
    return found


def plain_text(osis: str) -> str:
    """The words alone, on one line, without paragraph marks."""
    return " ".join(html.unescape(_TAG.sub("", _ASIDE.sub(" ", osis))).split())


def _slots(folder: Path, testament: str) -> Iterator[tuple[int, str]]:
    """(book, text as stored) of each slot."""
    packed = (folder / f"{testament}.bzz").read_bytes()
    blocks = [
        zlib.decompress(packed[offset : offset + size]) if size else b""
        for offset, size, _ in struct.iter_unpack(
            "<III", (folder / f"{testament}.bzs").read_bytes()
        )
    ]
    for block, offset, size in struct.iter_unpack(
        "<IIH", (folder / f"{testament}.bzv").read_bytes()
    ):
        yield block, blocks[block][offset : offset + size].decode() if size else ""
