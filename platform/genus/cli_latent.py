"""``genus invert``, ``genus interpolate`` and ``genus edit``: what latent codes are good for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genus.cli_arguments import add_class, add_run, add_truncation, positive


def add_latent_commands(commands: Any) -> None:
    """``commands`` is argparse's subparsers object."""
    _add_interpolate(commands)
    _add_invert(commands)
    _add_edit(commands)


def _add_interpolate(commands: Any) -> None:
    parser = commands.add_parser(
        "interpolate", help="walk between latent codes: of test images, or of drawn ones (GANs)"
    )
    add_run(parser)
    add = parser.add_argument
    add("--pairs", type=positive, help="rows of the picture (default: 8; of --codes: all)")
    add("--steps", type=positive, default=9, help="images in a row, its ends included")
    add("--out", type=Path, default=Path("interpolation.png"), help=".png")
    add("--linear", action="store_true", help="straight on, not along the great circle")
    add("--reference", help="data set of the images that are encoded (default: its test split)")
    add_class(parser)
    gan = parser.add_argument_group("GANs")
    gan.add_argument("--space", choices=("w", "z"), help="default: w of style-based ones, else z")
    gan.add_argument("--to-class", type=int, metavar="N", help="the walks' far ends, in w")
    gan.add_argument(
        "--codes", type=Path, metavar="FILE", help="from each to the next of 'genus invert'"
    )
    add_truncation(gan)
    parser.set_defaults(run=_interpolate)


def _add_invert(commands: Any) -> None:
    parser = commands.add_parser(
        "invert", help="find images in the latent space W of a style-based GAN"
    )
    add_run(parser)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE",
        help="files, or numbers of test images (default: the first --n)")  # fmt: skip
    add("--n", type=positive, help="how many test images (default: 8)")
    add("--out", default="inverted", metavar="PREFIX", help="of PREFIX.png and PREFIX.npz")
    add("--steps", type=positive, default=1000, help="of the search (default: 1000)")
    add("--space", choices=("w", "w+"), default="w", help="one w, or one for each layer")
    add("--distance", choices=("features", "pixels"), default="features",
        help="features and pixels, or pixels alone")  # fmt: skip
    add("--samples", type=positive, default=1000, help="to compare with (default: 1000)")
    add("--fit", choices=("pad", "resize"), help="of files (default: as the run's data)")
    add("--class", dest="label", type=int, metavar="N",
        help="start from its mean (default: of test images their own, of files all)")  # fmt: skip
    add("--reference", help="data set of the test images (default: its test split)")
    parser.set_defaults(run=_invert)


def _add_edit(commands: Any) -> None:
    parser = commands.add_parser(
        "edit", help="change one attribute of a style-based GAN's images by a direction in W"
    )
    add_run(parser)
    which = parser.add_argument_group("direction, one of").add_mutually_exclusive_group(
        required=True
    )
    which.add_argument("--attribute", metavar="NAME", help="brightness, contrast, width, ...")
    which.add_argument("--to-class", type=int, metavar="N", help="from the class of --class")
    which.add_argument(
        "--component", type=int, metavar="K", help="principal component of w, from 1"
    )
    which.add_argument("--direction", type=Path, metavar="FILE", help="that --save has written")
    add = parser.add_argument
    add("--keep", default="", metavar="NAME,...", help="attributes that are to stay")
    add("--fit", choices=("ridge", "logistic"), help="of --attribute: to its value (default), or "
        "to what tells the upper from the lower half")  # fmt: skip
    add("--samples", type=positive, default=2000, help="draws to find it from (default: 2000)")
    add("--layers", metavar="A-B", help="of the generator that are moved, from 0 (default: all)")
    add("--range", nargs=2, type=float, metavar=("LOW", "HIGH"), dest="ends",
        help="ends of the rows, in the unit that is told (-3 3; classes: 0 1)")  # fmt: skip
    add("--steps", type=positive, default=7, help="images in a row, its ends included")
    add("--n", type=positive, help="rows, which are samples (default: 8)")
    add("--codes", type=Path, metavar="FILE", help="rows are those of 'genus invert'")
    add("--save", type=Path, metavar="FILE", help="keep the direction in this .npz")
    add("--out", type=Path, default=Path("edit.png"), help=".png")
    add_truncation(parser)
    add_class(parser)
    parser.set_defaults(run=_edit)


def _interpolate(arguments: argparse.Namespace) -> None:
    from genus.commands_interpolate import interpolate

    interpolate(arguments)


def _invert(arguments: argparse.Namespace) -> None:
    from genus.commands_invert import invert_images

    invert_images(arguments)


def _edit(arguments: argparse.Namespace) -> None:
    from genus.commands_edit import edit

    edit(arguments)
