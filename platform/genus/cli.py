"""The ``genus`` command. Heavy imports happen inside the subcommand that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from genus.cli_arguments import add_class, add_run, add_truncation, positive
from genus.cli_checkpoint import add_checkpoint_commands
from genus.cli_data import add_data_commands
from genus.cli_latent import add_latent_commands
from genus.cli_launch import add_launch_commands
from genus.cli_plan import add_plan_command
from genus.errors import GenusError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 1 for faults that it found, 2
    for a wrong request."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        return 0
    except GenusError as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genus", description="Train and compare deep generative models of every family."
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="fetch, pack, index, verify and inspect data sets")
    add_data_commands(data.add_subparsers(required=True, metavar="COMMAND"))

    sample = commands.add_parser("sample", help="draw samples from a run")
    add_run(sample)
    _drawing_arguments(sample)
    sample.add_argument("--n", type=positive, help="number of samples (default: 64; text: 1)")
    sample.add_argument(
        "--out",
        type=Path,
        help=".png grid (vectors: plot) or .npz (default: samples.png); text: default: shown",
    )
    sample.add_argument("--prompt", help="text to go on from")
    sample.add_argument("--length", type=positive, help="tokens (default: what fills a window)")
    sample.add_argument(
        "--columns", type=int, default=0, help="grid columns (0: one a class, or 8)"
    )
    sample.set_defaults(run=_sample)

    evaluate = commands.add_parser("evaluate", help="measure a run's samples and likelihood")
    add_run(evaluate)
    _drawing_arguments(evaluate)
    _search_arguments(evaluate)
    evaluate.add_argument(
        "--n", type=int, help="number of samples (default: 2000 images), or of answers (all)"
    )
    evaluate.add_argument("--reference", help="data set to compare with (default: its test split)")
    evaluate.add_argument(
        "--likelihood",
        type=int,
        metavar="N",
        help="test samples for the likelihood (default: no images, all vectors)",
    )
    evaluate.add_argument(
        "--trace",
        choices=("rademacher", "gaussian", "exact"),
        help="likelihood by the probability-flow ODE with this trace (default: the family's own)",
    )
    evaluate.add_argument(
        "--double",
        action="store_true",
        help="likelihood and round trip in float64, of models whose density is exact",
    )
    evaluate.set_defaults(run=_evaluate)

    translate = commands.add_parser(
        "translate", help="a run's answers to sources: translations, captions, transcripts"
    )
    add_run(translate)
    _search_arguments(translate)
    translate.add_argument(
        "--source", help="a text, or the file of an image or sound (default: those of the test set)"
    )
    translate.add_argument("--n", type=positive, default=10, help="how many of the test set")
    translate.add_argument("--reference", help="test set (default: the test split of the run's)")
    translate.add_argument("--out", type=Path, help="text file (default: shown)")
    translate.set_defaults(run=_translate)

    add_latent_commands(commands)

    anomaly = commands.add_parser(
        "anomaly", help="tell outliers from the run's test images by their likelihood"
    )
    add_run(anomaly)
    anomaly.add_argument(
        "--outliers", nargs="+", required=True, metavar="URL", help="data sets of other images"
    )
    anomaly.add_argument("--n", type=positive, default=1000, help="images of each set")
    anomaly.add_argument("--reference", help="data set of inliers (default: the run's test split)")
    anomaly.set_defaults(run=_anomaly)

    add_launch_commands(commands)
    add_plan_command(commands)
    add_checkpoint_commands(commands)

    curves = commands.add_parser("curves", help="draw a run's training curves")
    curves.add_argument("folder", type=Path, metavar="RUN")
    curves.add_argument("--out", type=Path, help="picture (default: RUN/curves.png)")
    curves.set_defaults(run=_curves)

    show = commands.add_parser("show", help="what a run reached and where everything lies")
    show.add_argument("folder", type=Path, metavar="RUN")
    show.set_defaults(run=_show)

    digest = commands.add_parser("digest", help="hash every piece of a run's state")
    digest.add_argument("folder", type=Path, metavar="RUN")
    digest.set_defaults(run=_digest)
    return parser


def _drawing_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=positive, help="sampler steps")
    parser.add_argument("--guide", type=Path, metavar="RUN", help="autoguidance by a weaker run")
    parser.add_argument("--guide-ema", help="the guide's average (default: its config's first)")
    parser.add_argument("--method", help="sampler (as in sampling.method)")
    parser.add_argument("--guidance", type=float, help="guidance weight (1: none)")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="of families with a base or levels or tokens"
    )
    add_truncation(parser)
    parser.add_argument("--top-k", type=int, help="tokens: of the k most probable")
    parser.add_argument("--top-p", type=float, help="tokens: of the nucleus of probability p")
    parser.add_argument("--min-p", type=float, help="tokens: p times as probable as the best")
    add_class(parser)


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=positive, help="answers: hypotheses of beam search")
    parser.add_argument("--length-penalty", type=float, help="answers: exponent of beam search's")


def _sample(arguments: argparse.Namespace) -> None:
    from genus.commands_sample import sample

    sample(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    from genus.commands_evaluate import evaluate

    evaluate(arguments)


def _translate(arguments: argparse.Namespace) -> None:
    from genus.commands_translate import translate

    translate(arguments)


def _anomaly(arguments: argparse.Namespace) -> None:
    from genus.commands_anomaly import anomaly

    anomaly(arguments)


def _curves(arguments: argparse.Namespace) -> None:
    from genus.commands import curves

    curves(arguments.folder, arguments.out)


def _show(arguments: argparse.Namespace) -> None:
    from genus.commands import show

    show(arguments.folder)


def _digest(arguments: argparse.Namespace) -> None:
    from genus.commands_checkpoint import digest

    digest(arguments.folder)


if __name__ == "__main__":
    raise SystemExit(main())
