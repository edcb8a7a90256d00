"""``genus submit`` and ``genus runs``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genus.errors import ConfigError


def add_launch_commands(commands: Any) -> None:
    """``commands`` is argparse's subparsers object."""
    submit = commands.add_parser(
        "submit",
        help="submit a recipe as a SLURM job",
        add_help=False,
        prefix_chars="\0",  # all words are for _submit_parser, and -- is one of them
    )
    submit.add_argument("words", nargs=argparse.REMAINDER)
    submit.set_defaults(run=_submit)

    runs = commands.add_parser("runs", help="list runs: how far they are, and their jobs")
    runs.add_argument("root", type=Path, nargs="?", default=Path("runs"))
    runs.set_defaults(run=_runs)


def _submit_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genus submit",
        usage="genus submit RECIPE [flags] -- [--preset NAME] [key=value ...]",
        description="Submit a recipe as a SLURM job. Flags that are not listed here go to sbatch.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", type=Path, help="recipes/NAME.py")
    parser.add_argument("--nodes", "-N", type=int, default=1)
    parser.add_argument(
        "--gpus-per-node", default="", metavar="N", help="8, or a100:8 (default: 0)"
    )
    parser.add_argument(
        "--processes-per-node", type=int, default=0, metavar="N",
        help="default: one a GPU; without GPUs 1",
    )  # fmt: skip
    parser.add_argument("--time", "-t", default="", help="limit, as sbatch takes it: 12:00:00")
    parser.add_argument(
        "--grace", type=int, default=120, metavar="SECONDS",
        help="the run is told to save so long before the job's end (default: 120)",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="N",
        help="give up after so many restarts without a newer checkpoint (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B,...",
        help="an array of runs, one a value; given several times: one a combination",
    )  # fmt: skip
    parser.add_argument(
        "--launch-config", type=Path, metavar="YAML",
        help="Accelerate's config, launch/accelerate/*.yaml (default: DDP; bf16 on GPUs)",
    )  # fmt: skip
    parser.add_argument("--container", default="", metavar="IMAGE", help="run in it, by pyxis")
    parser.add_argument(
        "--mount", action="append", default=[], metavar="FROM:TO", help="more of the container's"
    )
    parser.add_argument("--dependency", "-d", default="", help="as sbatch's, beside singleton")
    parser.add_argument("--template", type=Path, help="instead of launch/slurm/job.sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    return parser


def _submit(arguments: argparse.Namespace) -> None:
    words: list[str] = arguments.words
    at = words.index("--") if "--" in words else len(words)
    parsed, passed_on = _submit_parser().parse_known_args(words[:at])
    if parsed.nodes < 1 or parsed.processes_per_node < 0:
        raise ConfigError("--nodes and --processes-per-node must be positive")
    if parsed.grace < 1 or parsed.restarts < 0:
        raise ConfigError("--grace must be positive, and --restarts not negative")
    from genus.commands_submit import submit

    submit(parsed, passed_on, words[at + 1 :])


def _runs(arguments: argparse.Namespace) -> None:
    from genus.commands_runs import list_runs

    list_runs(arguments.root)
