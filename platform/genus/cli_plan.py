"""``genus plan``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genus.errors import ConfigError


def add_plan_command(commands: Any) -> None:
    """``commands`` is argparse's subparsers object."""
    plan = commands.add_parser(
        "plan",
        help="what a run will need and cost, before it starts",
        add_help=False,
        prefix_chars="\0",  # all words are for _plan_parser: the recipe's may stand anywhere
    )
    plan.add_argument("words", nargs=argparse.REMAINDER)
    plan.set_defaults(run=_plan)


def _plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genus plan",
        usage="genus plan RECIPE [--preset NAME] [key=value ...] [flags]\n"
        "       genus plan --compare RUN",
        description="What a run will need and cost, before it starts.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="RECIPE key=value", help="recipes/NAME.py, and its own words")
    add("--preset", default="", help="the recipe's")
    add("--processes", type=int, default=1, metavar="N", help="ranks (default: 1)")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="ranks of a node (default: 8)")
    add("--gpu", default="", help="h100, a100-80, ...; default: this machine's CPU")
    add("--price", type=float, default=0.0, metavar="DOLLARS", help="of a GPU for an hour")
    add("--disk", type=float, default=0.0, metavar="GB/S",
        help="of checkpoints (default: 1; on this machine: tried out)")  # fmt: skip
    add("--search", action="store_true", help="find and take the largest micro-batch that fits")
    add("--image", default="", metavar="CxHxW", help="of data that are not here")
    add("--classes", type=int, default=0, metavar="N", help="the same")
    add("--vocabulary", type=int, default=0, metavar="N", help="the same")
    add("--dims", type=int, default=0, metavar="N", help="the same, of vectors")
    add("--json", action="store_true", help="print the plan as JSON")
    add("--no-store", action="store_true", help="leave no plan.json in the run's folder")
    add("--compare", type=Path, metavar="RUN", help="a run's plan beside what it measured")
    return parser


def _plan(arguments: argparse.Namespace) -> None:
    parsed = _plan_parser().parse_intermixed_args(arguments.words)
    if bool(parsed.words) == (parsed.compare is not None):
        raise ConfigError("genus plan RECIPE ..., or genus plan --compare RUN")
    if min(parsed.processes, parsed.gpus_per_node) < 1:
        raise ConfigError("--processes and --gpus-per-node must be positive")
    if min(parsed.price, parsed.disk) < 0:
        raise ConfigError("--price and --disk must not be negative")
    from genus.commands_plan import compare, plan

    if parsed.compare is not None:
        compare(parsed.compare)
    else:
        plan(Path(parsed.words[0]), parsed.words[1:], parsed)
