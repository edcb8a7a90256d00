"""Characters as tokens: a vocabulary of those that occur, as a Hugging Face tokenizer.json.

The file is a WordLevel model behind a split into single characters, which the tokenizers library
reads too; here it is encoded by a table, without that library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.errors import DataError

_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": "[\\s\\S]"},  # any character, line ends included
    "behavior": "Isolated",
    "invert": False,
}
_SHOWN = 20


class UnknownCharacterError(DataError):
    """A text has characters that the tokenizer doesn't know."""


def characters_model(characters: Iterable[str], end: str = "") -> bytes:
    """The tokenizer.json of these characters, numbered by code point, and of a token ``end`` of two
    characters or more behind them ("": none). DataError."""
    known = sorted(set(characters))
    if not known:
        raise DataError("there are no characters to make a tokenizer of: the text is empty")
    if len(end) == 1:
        raise DataError(f"the end token {end!r} would be a character: take a word, <|endoftext|>")
    vocabulary = {token: number for number, token in enumerate([*known, *([end] if end else [])])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": len(known), "content": end, **special, "special": True}] if end else []
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _SPLIT,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # not in the vocabulary: the tokenizers library raises where it meets another character
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"},
    }
    return json.dumps(body, ensure_ascii=False, indent=1).encode()


class Characters:
    """From text to the numbers of its characters and back, exactly."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        """``vocabulary``: token -> number; tokens of one character, of which there is at least one,
        are encoded."""
        self.vocabulary = vocabulary
        self._text = {number: token for token, number in vocabulary.items()}
        single = sorted((ord(t), n) for t, n in vocabulary.items() if len(t) == 1)
        self._codes, self._numbers = np.array(single, np.uint32).T

    @staticmethod
    def of_model(body: Any) -> Characters | None:
        """Of a parsed tokenizer.json; None where it is of another kind."""
        try:
            vocabulary, added = body["model"]["vocab"], body["added_tokens"]
            kind = body["model"]["type"], body["pre_tokenizer"], body["decoder"]
            plain = body["normalizer"] is None and body["post_processor"] is None
        except (KeyError, TypeError):
            return None
        special = {token["content"] for token in added}
        if not plain or kind != ("WordLevel", _SPLIT, {"type": "Fuse"}):
            return None
        own = all(len(token) == 1 or token in special for token in vocabulary)
        return Characters(vocabulary) if own and vocabulary.keys() > special else None

    def encode(self, text: str) -> NDArray[np.uint32]:
        """(n,) a number a character. UnknownCharacterError names those that have none."""
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        bad = self._codes[places] != codes
        if bad.any():
            found = [repr(chr(code)) for code in np.unique(codes[bad]).tolist()]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise UnknownCharacterError(
                f"the tokenizer has no token for {', '.join(found[:_SHOWN])}{more}: it knows the "
                f"{len(self._codes)} characters of the text that it was made from; leave them out"
            )
        numbers: NDArray[np.uint32] = self._numbers[places]
        return numbers

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens. DataError for a number that is none."""
        try:
            return "".join(self._text[token] for token in tokens)
        except KeyError as error:
            raise DataError(f"{error} is no token of 0..{len(self._text) - 1}") from None
