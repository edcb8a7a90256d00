"""Training a tokenizer: byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909, over
bytes as in GPT-2), by the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from genus.atomic import replacing
from genus.data.documents import read_texts
from genus.data.text import END, tokenizer_of_model
from genus.errors import DataError


def train_tokenizer(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    vocabulary: int = 8192,
    end: str = END,
    separator: str = "",
    field: str = "text",
) -> int:
    """Train on the documents of UTF-8 text files, write the tokenizer.json ``out`` and return its
    number of tokens: ``vocabulary``, or fewer where the text gives no more. DataError."""
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists already: remove it or name another file")
    paths = [Path(file) for file in files]
    model = train_bpe((text for _, text in read_texts(paths, separator, field)), vocabulary, end)
    count = tokenizer_of_model(model).vocabulary
    with replacing(out) as path:
        path.write_bytes(model)
    fewer = f" (the text gives no more than these of {vocabulary:,})" if count < vocabulary else ""
    print(f"trained {count:,} tokens{fewer}: {out}")
    return count


def train_bpe(texts: Iterable[str], vocabulary: int, end: str = END) -> bytes:
    """The content of a tokenizer.json: the token ``end``, the 256 bytes, and the pairs that occur
    most often. It loses nothing of any text. DataError for vocabularies below 257."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise DataError("to train a tokenizer, run 'pip install tokenizers'") from None
    if vocabulary < 257 or not end:
        raise DataError(
            f"a tokenizer of {vocabulary} tokens with the end token {end!r}: it needs an end token "
            "and 256 bytes at least"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True)).encode()
