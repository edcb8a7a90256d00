"""Arguments that several ``genus`` subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def add_run(parser: argparse.ArgumentParser) -> None:
    """The run, its weights, and how to compute."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--ema", help="average: its label, any width, or none (default: the first)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    parser.add_argument("--batch", type=positive, default=100, help="samples at once")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")


def add_class(parser: argparse.ArgumentParser) -> None:
    """One class."""
    parser.add_argument(
        "--class", dest="label", type=int, help="one class only (default: all in turn)"
    )


def add_truncation(parser: argparse._ActionsContainer) -> None:
    """psi."""
    parser.add_argument(
        "--truncation", type=float, metavar="PSI", help="style-based GANs: 1 none, 0 the mean"
    )
