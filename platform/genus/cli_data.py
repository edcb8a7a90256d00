"""``genus data``: getting data sets into shards, and looking at them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_data_commands(commands: Any) -> None:
    """``commands`` is argparse's subparsers object."""
    fetch = commands.add_parser("fetch", help="get a built-in data set and pack it into shards")
    fetch.add_argument("name", help="of a built-in data set (docs/data.md), or gpt2: a tokenizer")
    fetch.add_argument("--root", type=Path, help="where to put it (default: $GENUS_DATA or ./data)")
    fetch.add_argument(
        "--source", type=Path, help="folder with the original files, if you have them"
    )
    fetch.set_defaults(run=_fetch)

    pack = commands.add_parser("pack", help="pack images (a folder, .npz, idx files) or vectors")
    pack.add_argument(
        "source",
        type=Path,
        help="folder of images (sub-folders are classes), .npz or idx file of images; .npy (N, D) "
        "or .csv of plain numbers, whose rows are vectors",
    )
    pack.add_argument("--out", type=Path, required=True, help="folder for the shards")
    pack.add_argument(
        "--shard-size", type=int, help="samples a shard (default: 1000 images, 10,000 vectors)"
    )
    pack.add_argument(
        "--seed", type=int, help="of the shuffle before images are packed (0); vectors keep order"
    )
    pack.set_defaults(run=_pack)

    _add_text_commands(commands)

    index = commands.add_parser("index", help="index webdataset shards made elsewhere")
    index.add_argument("url", help="folder or bucket with *.tar; the index is written beside them")
    index.set_defaults(run=_index)

    verify = commands.add_parser("verify", help="check every byte of a data set")
    verify.add_argument("url", help="folder, bucket or built-in data set")
    verify.add_argument("--decode", action="store_true", help="decode every image as well")
    verify.add_argument("--workers", type=int, help="shards at once (default: the machine's cores)")
    verify.set_defaults(run=_verify)

    inspect = commands.add_parser("inspect", help="counts, fields, sizes, and a sheet of images")
    inspect.add_argument("url", help="folder, bucket or built-in data set")
    inspect.add_argument("--sheet", type=Path, metavar="PNG", help="draw a contact sheet there")
    inspect.add_argument("--n", type=int, default=64, help="images on the sheet")
    inspect.set_defaults(run=_inspect)


def _add_text_commands(commands: Any) -> None:
    tokens = commands.add_parser(
        "tokens", aliases=["pack-text"], help="pack UTF-8 text or .jsonl files as tokens"
    )
    _add_text(tokens)
    tokens.add_argument("--out", type=Path, required=True, help="folder for the shards")
    tokens.add_argument(
        "--tokenizer",
        default="bytes",
        help="'bytes', 'characters' (those that occur), 'gpt2', or a Hugging Face tokenizer.json",
    )
    tokens.add_argument("--end", default="", help="the tokenizer's token that ends a document")
    tokens.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="the last share of the tokens goes to OUT/test, the others to OUT/train",
    )
    tokens.add_argument("--workers", type=int, default=1, help="processes that share the work")
    tokens.set_defaults(run=_tokens)

    train = commands.add_parser("train-tokenizer", help="train a byte-level BPE tokenizer on text")
    _add_text(train)
    train.add_argument("--out", type=Path, required=True, help="the tokenizer.json to write")
    train.add_argument("--vocabulary", type=int, default=8192, help="how many tokens it gets")
    train.add_argument("--end", default="<|endoftext|>", help="its token that ends documents")
    train.set_defaults(run=_train_tokenizer)


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--separator", default="", help="what separates documents within a file")
    parser.add_argument("--field", default="text", help="the text in a line of a .jsonl file")


def _fetch(arguments: argparse.Namespace) -> None:
    from genus.data.datasets import fetch
    from genus.data.text import GPT2

    if arguments.name == GPT2:
        from genus.data.gpt2 import fetch_gpt2

        print(fetch_gpt2(arguments.root, arguments.source))
        return
    fetch(arguments.name, arguments.root, arguments.source)


def _pack(arguments: argparse.Namespace) -> None:
    from genus.data.pack import pack
    from genus.data.pack_vectors import SHARD_SIZE, TABLES, pack_vectors, read_table
    from genus.errors import DataError

    source, size, seed = arguments.source, arguments.shard_size, arguments.seed
    if source.suffix not in TABLES:
        size = 1000 if size is None else size
        pack(source, arguments.out, shard_size=size, shuffle_seed=seed or 0)
        return
    if seed is not None:
        raise DataError(f"--seed {seed}: vectors are packed in their order, unshuffled")
    table = read_table(source)
    size = SHARD_SIZE if size is None else size
    pack_vectors(table, arguments.out, shard_size=size, place=str(source))


def _tokens(arguments: argparse.Namespace) -> None:
    from genus.data.pack_text import pack_text

    pack_text(
        arguments.files,
        arguments.out,
        tokenizer=arguments.tokenizer,
        end=arguments.end,
        separator=arguments.separator,
        field=arguments.field,
        validation=arguments.validation,
        workers=arguments.workers,
    )


def _train_tokenizer(arguments: argparse.Namespace) -> None:
    from genus.data.train_tokenizer import train_tokenizer

    train_tokenizer(
        arguments.files,
        arguments.out,
        vocabulary=arguments.vocabulary,
        end=arguments.end,
        separator=arguments.separator,
        field=arguments.field,
    )


def _index(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from genus.data.index import index_folder

    with tqdm(unit=" shards", disable=not sys.stderr.isatty()) as bar:
        manifest = index_folder(arguments.url, progress=lambda shard: bar.update())
    print(f"{arguments.url}: {manifest.total:,} samples in {len(manifest.shards)} shards")


def _verify(arguments: argparse.Namespace) -> int:
    from genus.data.verify import verify

    faults = verify(arguments.url, arguments.workers, decode=arguments.decode)
    for fault in faults:
        print(fault)
    print(f"{arguments.url}: {len(faults)} faults" if faults else f"{arguments.url}: sound")
    return 1 if faults else 0


def _inspect(arguments: argparse.Namespace) -> None:
    from genus.data.inspect import contact_sheet, inspect

    print(inspect(arguments.url))
    if arguments.sheet is not None:
        count = contact_sheet(arguments.url, arguments.sheet, arguments.n)
        print(f"\n{arguments.sheet}: {count} images")
