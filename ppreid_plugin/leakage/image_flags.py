"""Flags of the commands that take image components out of features."""

from __future__ import annotations

import argparse

from ..number_checks import require_whole
from .data import LeakageSet
from .image_components import MOST


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
    add(
        "--head-components",
        type=int,
        default=0,
        metavar="K",
        help="likewise, of the upper quarter of the images, where heads are",
    )
    add("--images-root", metavar="DIR", help="folder that paths or row_ids are relative to, if --train has no images")


def checked_components(args: argparse.Namespace, rows: LeakageSet) -> str:
    """Return in words which components are asked for; empty: none are.

    Raises:
        ValueError: a negative number, or rows without images.
    """
    most = min(len(rows) - 1, MOST)
    counts = {
        kind: require_whole(flag, count, least=0, most=most, hint=f"of {len(rows)} rows")
        for kind, flag, count in (
            ("image", "--image-components", args.image_components),
            ("head", "--head-components", args.head_components),
        )
    }
    said = ", ".join(f"{count} {kind} components" for kind, count in counts.items() if count)
    if said and rows.images is None:
        raise ValueError(
            f"{said} are asked for, and '{args.train}' has no images. Add an array images, (n, H, W, 3), or name the "
            "folder that row_ids are relative to: --images-root DIR"
        )
    return said
