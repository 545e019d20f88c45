"""Flags of the commands that take image components out of features."""

from __future__ import annotations

import argparse

from ..number_checks import require_whole
from .data import LeakageSet


def add_image_flags(parser: argparse.ArgumentParser, *, to: str) -> None:
    """Add the flags; ``to`` says what is done with the components."""
    add = parser.add_argument
    add(
        "--image-components",
        type=int,
        default=0,
        metavar="K",
        help=f"principal components of the training images to {to}, against inversion; with them only the attributes "
        "that --only names",
    )
    add("--images-root", metavar="DIR", help="folder that paths or row_ids are relative to, if --train has no images")


def checked_components(args: argparse.Namespace, rows: LeakageSet) -> int:
    """Return how many components are asked for.

    Raises:
        ValueError: a negative number, or rows without images.
    """
    count = require_whole("--image-components", args.image_components, least=0)
    if count and rows.images is None:
        raise ValueError(
            f"--image-components is {count}, and '{args.train}' has no images. Add an array images, (n, H, W, 3), or "
            "name the folder that row_ids are relative to: --images-root DIR"
        )
    return count
