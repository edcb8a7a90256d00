"""From text files to packed tokens: by several processes, going on after a kill.

The files are cut into jobs. The tokens of each are written into a hidden folder beside the new one,
under a name that says of what text and tokenizer they are; a job whose file is there is not done
again. At the end they are laid end to end. So the result depends neither on the number of processes
nor on kills.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from genus.atomic import new_folder
from genus.data.characters import characters_model
from genus.data.encode_text import Job, Pool, Work, characters_of, encode_job, jobs_of
from genus.data.manifest import Manifest
from genus.data.root import locked
from genus.data.text import BYTES, CHARACTERS, Tokenizer, open_tokenizer, tokenizer_of_model
from genus.data.token_writer import SHARD_TOKENS, TokenWriter
from genus.errors import DataError


def pack_text(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str = BYTES,
    end: str = "",
    separator: str = "",
    field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    name: str = "",
    validation: float = 0.0,
    workers: int = 1,
) -> Manifest:
    """Pack UTF-8 text files into the new folder ``out`` and return its manifest.

    Documents, in the order of ``paths``: of ``*.jsonl`` the string ``field`` of each line, of other
    files the parts between ``separator``, or without one the whole file. Their text is kept
    exactly; documents of no character are left out, and their number is printed.

    ``tokenizer``: "bytes" (UTF-8 bytes, end token 256, vocabulary 257), "characters" (those that
    occur; ``end`` adds a token), "gpt2" (ends with "<|endoftext|>"), or the path of a Hugging Face
    tokenizer.json. Its token ``end`` ("": none) is put behind each document.

    ``validation`` in (0, 1): the last such share of the tokens becomes ``out``/test, the others
    ``out``/train, whose manifest is returned. The cut may lie within a document. It is the last
    part and no sample of documents, since neighbours are alike: held out one by one, many would be
    known from the documents beside them.

    ``workers`` processes share the work (1: this one). ``out`` appears whole or not at all and is
    never overwritten; a killed call leaves .NAME.packing beside it, with which the next one goes
    on. DataError as by ``pack_tokens``, and for files that aren't UTF-8 or JSON.
    """
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists already: remove it or name another folder")
    if not 0 <= validation < 1 or workers < 1:
        raise DataError(
            f"validation={validation}, workers={workers}: take a share from 0 to below 1, and 1 or "
            "more processes"
        )
    folder = out.with_name(f".{out.name}.packing")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", wait=False):
            try:
                jobs = [*jobs_of([Path(path) for path in paths], separator)]
                with Pool(min(workers, len(jobs))) as run:
                    coder = _coder(tokenizer, end, jobs, separator, field, run)
                    work = Work(coder.model, coder.end, separator, field, folder)
                    _encode(work, jobs, run)
                results = [work.path(number, job) for number, job in enumerate(jobs)]
                manifest = _publish(results, out, coder, name, shard_tokens, validation)
            finally:
                if out.exists() or not any(folder.glob("*.npz")):  # done, or nothing to go on with
                    shutil.rmtree(folder, ignore_errors=True)
            return manifest
    except BlockingIOError:
        raise DataError(f"another process is packing {out}: wait for it, or end it") from None


def _coder(
    tokenizer: str, end: str, jobs: Sequence[Job], separator: str, field: str, run: Pool
) -> Tokenizer:
    if tokenizer != CHARACTERS:
        return open_tokenizer(tokenizer, end)
    found = run(partial(characters_of, separator=separator, field=field), [(job,) for job in jobs])
    return tokenizer_of_model(characters_model(set().union(*found), end), end)


def _encode(work: Work, jobs: Sequence[Job], run: Pool) -> None:
    numbered = [*enumerate(jobs)]
    missing = [(number, job) for number, job in numbered if not work.path(number, job).exists()]
    if len(missing) < len(jobs):
        print(f"going on: {len(jobs) - len(missing):,} of {len(jobs):,} parts are done already")
    done, quiet = len(jobs) - len(missing), not sys.stderr.isatty()
    with tqdm(total=len(jobs), initial=done, unit=" parts", disable=quiet) as bar:
        for _ in run(partial(encode_job, work), missing):
            bar.update()


# ---- laying them end to end ----------------------------------------------------------------------


def _publish(
    results: Sequence[Path], out: Path, coder: Tokenizer, name: str, shard_tokens: int, share: float
) -> Manifest:
    """The jobs' tokens as the folder ``out``, or its train and test."""
    sizes, empty = [], []
    for path in results:
        with np.load(path, allow_pickle=False) as arrays:
            sizes.append(len(arrays["tokens"]))
            empty += arrays["empty"].tolist()
    total = sum(sizes)
    if total == 0:
        raise DataError(f"there are no documents to pack into {out}")
    if empty:
        print(f"left out {len(empty):,} documents without text (the first: {empty[0]})")
    cut = total - round(share * total)
    parts = {"train": (0, cut), "test": (cut, total)} if share else {"": (0, total)}
    if share and not 0 < cut < total:
        raise DataError(f"{total} tokens are too few for a validation share of {share}")
    manifests = []
    with new_folder(out) as folder:
        for part, (begin, stop) in parts.items():
            (folder / part).mkdir(exist_ok=True)
            writer = TokenWriter(folder / part, coder.vocabulary, coder.end, shard_tokens)
            first = 0
            for path, size in zip(results, sizes, strict=True):
                low, high = max(begin, first) - first, min(stop, first + size) - first
                if low < high:
                    writer.add(*_cut(path, low, high))
                first += size
            manifest = writer.finish(name or out.name, coder.name, coder.model)
            manifests.append((part, manifest, writer.documents))
    for part, manifest, documents in manifests:
        print(
            f"packed {manifest.tokens:,} tokens of {documents:,} documents in "
            f"{len(manifest.shards)} shards: {out / part}"
        )
    return manifests[0][1]


def _cut(path: Path, low: int, high: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The tokens low:high of a job, and where documents begin in them."""
    with np.load(path, allow_pickle=False) as arrays:
        starts = arrays["starts"]
        inside = starts[(starts >= low) & (starts < high)] - low
        return arrays["tokens"][low:high], inside
