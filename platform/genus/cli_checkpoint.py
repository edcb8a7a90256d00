"""``genus checkpoint``: looking at checkpoints, and taking them to and from other formats."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_checkpoint_commands(commands: Any) -> None:
    """``commands`` is argparse's subparsers object."""
    checkpoint = commands.add_parser("checkpoint", help="verify, hash and convert checkpoints")
    commands = checkpoint.add_subparsers(required=True, metavar="COMMAND")
    either = "run folder, or the folder of one checkpoint"

    verify = commands.add_parser("verify", help="whether every byte is as it was written")
    verify.add_argument("path", type=Path, metavar="RUN", help=either)
    verify.set_defaults(run=_verify)

    digest = commands.add_parser("digest", help="hash every piece of state")
    digest.add_argument("path", type=Path, metavar="RUN", help=f"{either} (of a run: the newest)")
    digest.set_defaults(run=_digest)

    convert = commands.add_parser(
        "convert",
        help="to a .safetensors file, or from DeepSpeed's own format to a run",
        usage="genus checkpoint convert RUN OUT.safetensors [--average LABEL | --weights]\n"
        "       genus checkpoint convert DEEPSPEED_FOLDER RUN --out NEW_RUN\n"
        "           [--network NAME] [--prefix parts.NAME.]",
    )
    add = convert.add_argument
    add("source", type=Path, help=f"{either}; or what DeepSpeed's save_checkpoint wrote")
    add("target", type=Path, help="the file; or a run of the same network, started once")
    which = convert.add_mutually_exclusive_group()
    which.add_argument("--average", default="", metavar="LABEL", help="default: the run's first")
    which.add_argument("--weights", action="store_true", help="no average: the weights as trained")
    add("--out", type=Path, metavar="NEW_RUN", help="run folder to make")
    add("--network", default="", metavar="NAME", help="of the run (default: its only one)")
    add("--prefix", default="", help="what DeepSpeed's names have before the network's own")
    convert.set_defaults(run=_convert)


def _verify(arguments: argparse.Namespace) -> int:
    from genus.commands_checkpoint import verify

    return verify(arguments.path)


def _digest(arguments: argparse.Namespace) -> None:
    from genus.commands_checkpoint import digest

    digest(arguments.path)


def _convert(arguments: argparse.Namespace) -> None:
    from genus.commands_checkpoint import convert

    convert(arguments)
