"""Tokenizers: from documents to tokens and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.characters import Characters
from genus.errors import DataError

BYTES = "bytes"
"""The tokenizer that needs no file: a token is a byte of the UTF-8 text."""
CHARACTERS = "characters"
"""The tokenizer that is made from the text that is packed: its characters."""
GPT2 = "gpt2"
"""GPT-2's byte-level BPE, which is fetched."""
END = "<|endoftext|>"
"""The end token of GPT-2's tokenizer and of those that are trained here."""
Tokens = NDArray[Any] | Sequence[int]
_BATCH = 2**20
"""Characters that are tokenized at once."""


@dataclass(frozen=True)
class Tokenizer:
    """From documents to token numbers, and back."""

    vocabulary: int
    """Tokens are 0..vocabulary-1."""
    end: int
    """The token that ends a document; -1: none."""
    encode: Callable[[Iterable[str]], Iterator[Tokens]]
    """Documents to their tokens (n,), without the end token, in the same order. DataError for what
    has no token."""
    text_of: Callable[[list[int]], str]
    """``decode`` without padding and end tokens."""
    model: bytes = b""
    """The content of its tokenizer.json; empty: bytes."""

    @property
    def name(self) -> str:
        """As manifests have it: "bytes", or the sha256 of the model."""
        return f"sha256:{hashlib.sha256(self.model).hexdigest()}" if self.model else BYTES

    def decode(self, tokens: Tokens) -> str:
        """The text of tokens (n,) in 0..vocabulary-1, on the host. Left out are the end token and
        -1, which pads; bytes that are no UTF-8 become U+FFFD."""
        return self.text_of(self._real(tokens))

    def size_of(self, tokens: Tokens) -> tuple[int, int]:
        """(characters, bytes) of their text in UTF-8. What a window of bytes cuts of a character
        counts as its bytes, and as a character where it begins one; with other tokenizers as the
        U+FFFD that stand for it."""
        real = self._real(tokens)
        if self.name == BYTES:
            return sum(t & 0xC0 != 0x80 for t in real), len(real)
        text = self.text_of(real)
        return len(text), len(text.encode())

    def _real(self, tokens: Tokens) -> list[int]:
        return [t for t in np.asarray(tokens).tolist() if t >= 0 and t != self.end]


def open_tokenizer(name: str, end: str = "") -> Tokenizer:
    """The tokenizer ``name``: "bytes" (256 bytes and the end token 256), "gpt2" (fetched if need
    be; ends with "<|endoftext|>"), or the path of a Hugging Face tokenizer.json, whose token
    ``end`` ends documents ("": none). DataError where it can't be."""
    if name in (BYTES, GPT2) and end:
        raise DataError(f"the tokenizer '{name}' has its own end token: leave out end={end!r}")
    if name == BYTES:
        return Tokenizer(257, 256, _encode_bytes, _text_of_bytes)
    if name == GPT2:
        from genus.data.gpt2 import fetch_gpt2

        name, end = str(fetch_gpt2()), END
    if name == CHARACTERS:
        raise DataError(
            "the tokenizer 'characters' is made from the text that is packed: open the "
            "tokenizer.json of the packed folder"
        )
    return tokenizer_of_model(read_model(Path(name)), end, name)


def tokenizer_of_model(model: bytes, end: str | int = "", place: str = "the model") -> Tokenizer:
    """The tokenizer whose tokenizer.json has the content ``model``.

    ``end``: the token that ends documents, or its number; "" or -1: none. DataError names
    ``place`` where it can't be.
    """
    try:
        body = json.loads(model)
    except ValueError as error:
        raise DataError(f"{place} is no Hugging Face tokenizer.json ({error})") from None
    characters = Characters.of_model(body)
    if characters is not None:
        known = characters.vocabulary
        number = _number(end, known, place)
        return Tokenizer(
            max(known.values()) + 1,
            number,
            lambda texts: map(characters.encode, texts),
            characters.decode,
            model,
        )
    try:
        import tokenizers
    except ImportError:
        raise DataError(f"to use {place}, run 'pip install tokenizers'") from None
    try:
        library = tokenizers.Tokenizer.from_str(model.decode())
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{place} is no Hugging Face tokenizer.json ({error})") from None
    # what a file may switch on, and what would lose text or put special tokens into documents
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # "<|endoftext|>" in a text stays text
    known = library.get_vocab(with_added_tokens=True)

    def encode(texts: Iterable[str]) -> Iterator[Tokens]:
        for batch in _batches(texts):
            for encoding in library.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids

    def text_of(tokens: list[int]) -> str:
        return str(library.decode(tokens, skip_special_tokens=False))

    return Tokenizer(max(known.values()) + 1, _number(end, known, place), encode, text_of, model)


def read_model(path: Path) -> bytes:
    """The content of a tokenizer.json. DataError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"can't read the tokenizer {path} ({error.strerror}): give '{BYTES}', '{CHARACTERS}', "
            f"'{GPT2}' or the path of a tokenizer.json"
        ) from None


def _number(end: str | int, known: dict[str, int], place: str) -> int:
    if isinstance(end, int):
        return end
    if end and end not in known:
        raise DataError(f"the tokenizer {place} has no token {end!r} to end documents with")
    return known[end] if end else -1


def _encode_bytes(texts: Iterable[str]) -> Iterator[Tokens]:
    for text in texts:
        yield np.frombuffer(text.encode(), np.uint8)


def _text_of_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


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
